"""A gRPC service and a gRPC visitor, for the tests in tests/it/grpc.rs. Needs grpcio and nothing generated.

    grpc_peer.py serve [CERTIFICATE KEY]     prints its port, serves until its standard input ends
    grpc_peer.py visit TARGET [AUTHORITY]    runs every check, prints the name of each; a failed one ends it with 1

AUTHORITY is a PEM file; without it the visitor speaks in clear. The visited hostname is web.test.
"""

import sys
import threading
from concurrent import futures

import grpc

LIMIT = 15  # seconds; everything is on this machine
TRAILING = (("x-trailing", "one"), ("x-trailing", "two"), ("x-blob-bin", bytes(range(256))))


# --- service


class Service:
    def __init__(self):
        self.cancelled = threading.Semaphore(0)

    def unary(self, request, context):
        context.send_initial_metadata((("x-initial", "first"),))
        context.set_trailing_metadata(TRAILING)
        return request

    def seen(self, _, context):
        """What metadata of the visitor arrived."""
        named = {key: value for key, value in context.invocation_metadata()}
        return repr((named["x-asked"], named["x-asked-bin"], context.time_remaining() < 1000)).encode()

    def fail(self, request, context):
        context.set_trailing_metadata(TRAILING)
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode())

    def collect(self, requests, context):
        lengths = [len(request) for request in requests]
        context.set_trailing_metadata(TRAILING)
        return repr((len(lengths), sum(lengths))).encode()

    def count(self, request, context):
        for n in range(int(request)):
            yield b"%d" % n
        context.set_trailing_metadata(TRAILING)

    def fail_late(self, _, context):
        yield b"one"
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more")

    def talk(self, requests, context):
        for request in requests:
            yield request + b"!"
        context.set_trailing_metadata(TRAILING)

    def hang(self, requests, context):
        """Says one word, then nothing, until the visitor is gone; that is counted."""
        gone = threading.Event()
        context.add_callback(gone.set)
        next(iter(requests))
        yield b"started"
        gone.wait(LIMIT)
        if not context.is_active():
            self.cancelled.release()

    def was_cancelled(self, _request, _context):
        return b"yes" if self.cancelled.acquire(timeout=LIMIT) else b"no"


def serve(certificate=None, key=None):
    service = Service()
    handlers = grpc.method_handlers_generic_handler(
        "lab.Peer",
        {
            "Unary": grpc.unary_unary_rpc_method_handler(service.unary),
            "Seen": grpc.unary_unary_rpc_method_handler(service.seen),
            "Fail": grpc.unary_unary_rpc_method_handler(service.fail),
            "Collect": grpc.stream_unary_rpc_method_handler(service.collect),
            "Count": grpc.unary_stream_rpc_method_handler(service.count),
            "FailLate": grpc.unary_stream_rpc_method_handler(service.fail_late),
            "Talk": grpc.stream_stream_rpc_method_handler(service.talk),
            "Hang": grpc.stream_stream_rpc_method_handler(service.hang),
            "WasCancelled": grpc.unary_unary_rpc_method_handler(service.was_cancelled),
        },
    )
    server = grpc.server(futures.ThreadPoolExecutor(64))
    server.add_generic_rpc_handlers((handlers,))
    if certificate:
        with open(certificate, "rb") as chain, open(key, "rb") as secret:
            credentials = grpc.ssl_server_credentials([(secret.read(), chain.read())])
        port = server.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0)


# --- visitor


def equal(left, right):
    if left != right:
        raise AssertionError(f"{left!r} is not {right!r}")


def trailing(call):
    equal([tuple(item) for item in call.trailing_metadata() if item[0].startswith("x-")], list(TRAILING))


class Visitor:
    def __init__(self, channel):
        at = "/lab.Peer/"
        self.unary = channel.unary_unary(at + "Unary")
        self.seen = channel.unary_unary(at + "Seen")
        self.fail = channel.unary_unary(at + "Fail")
        self.collect = channel.stream_unary(at + "Collect")
        self.count = channel.unary_stream(at + "Count")
        self.fail_late = channel.unary_stream(at + "FailLate")
        self.talk = channel.stream_stream(at + "Talk")
        self.hang = channel.stream_stream(at + "Hang")
        self.was_cancelled = channel.unary_unary(at + "WasCancelled")
        self.nothing = channel.unary_unary(at + "Nothing")

    def check_unary(self):
        for size in (0, 1, 100_000, 3_000_000):
            answer, call = self.unary.with_call(b"u" * size, timeout=LIMIT)
            equal(answer, b"u" * size)
            equal(call.code(), grpc.StatusCode.OK)
            equal(dict(call.initial_metadata())["x-initial"], "first")
            trailing(call)

    def check_metadata_of_the_visitor(self):
        asked = (("x-asked", "why"), ("x-asked-bin", b"\x00\xff"))
        equal(self.seen(b"", metadata=asked, timeout=LIMIT), repr(("why", b"\x00\xff", True)).encode())

    def check_failure(self):
        for words in ("plain", "näh: 100 %\n"):
            try:
                self.fail(words.encode(), timeout=LIMIT)
            except grpc.RpcError as error:
                equal((error.code(), error.details()), (grpc.StatusCode.FAILED_PRECONDITION, words))
                trailing(error)
            else:
                raise AssertionError("no failure")

    def check_unknown_method(self):
        try:
            self.nothing(b"", timeout=LIMIT)
        except grpc.RpcError as error:
            equal(error.code(), grpc.StatusCode.UNIMPLEMENTED)
        else:
            raise AssertionError("no failure")

    def check_client_stream(self):
        for count in (0, 1, 300):
            requests = (b"c" * 10_000 for _ in range(count))
            answer, call = self.collect.with_call(requests, timeout=LIMIT)
            equal(answer, repr((count, count * 10_000)).encode())
            trailing(call)

    def check_server_stream(self):
        for count in (0, 1, 300):
            call = self.count(b"%d" % count, timeout=LIMIT)
            equal(list(call), [b"%d" % n for n in range(count)])
            equal(call.code(), grpc.StatusCode.OK)
            trailing(call)

    def check_failure_after_messages(self):
        call = self.fail_late(b"", timeout=LIMIT)
        equal(next(call), b"one")
        try:
            next(call)
        except grpc.RpcError as error:
            equal((error.code(), error.details()), (grpc.StatusCode.RESOURCE_EXHAUSTED, "no more"))
        else:
            raise AssertionError("no failure")

    def check_both_streams(self):
        # Each message is sent only after the answer to the one before: nothing on the way may wait for more.
        answered = threading.Semaphore(1)

        def requests():
            for n in range(100):
                if not answered.acquire(timeout=LIMIT):
                    return
                yield b"%d" % n

        call = self.talk(requests(), timeout=LIMIT)
        for n in range(100):
            equal(next(call), b"%d!" % n)
            answered.release()
        equal(list(call), [])
        equal(call.code(), grpc.StatusCode.OK)
        trailing(call)

    def _hanging(self, timeout):
        def requests():
            yield b"begin"
            over.wait(LIMIT)

        over = threading.Event()
        call = self.hang(requests(), timeout=timeout)
        call.add_callback(over.set)
        equal(next(call), b"started")
        return call

    def check_cancellation(self):
        call = self._hanging(LIMIT)
        call.cancel()
        equal(call.code(), grpc.StatusCode.CANCELLED)
        equal(self.was_cancelled(b"", timeout=LIMIT), b"yes")

    def check_deadline(self):
        call = self._hanging(1)
        try:
            next(call)
        except grpc.RpcError as error:
            equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        else:
            raise AssertionError("no failure")
        equal(self.was_cancelled(b"", timeout=LIMIT), b"yes")

    def check_many_at_once(self):
        calls = [self.unary.future(b"%d" % n, timeout=LIMIT) for n in range(200)]
        equal([call.result() for call in calls], [b"%d" % n for n in range(200)])


def visit(target, authority=None):
    name = "web.test"
    options = [("grpc.default_authority", name), ("grpc.enable_http_proxy", 0)]
    if authority:
        with open(authority, "rb") as roots:
            credentials = grpc.ssl_channel_credentials(roots.read())
        channel = grpc.secure_channel(target, credentials, options + [("grpc.ssl_target_name_override", name)])
    else:
        channel = grpc.insecure_channel(target, options)
    with channel:
        visitor = Visitor(channel)
        for check in [check for check in dir(visitor) if check.startswith("check_")]:
            print(check, flush=True)
            getattr(visitor, check)()
    print("everything holds", flush=True)


if __name__ == "__main__":
    {"serve": serve, "visit": visit}[sys.argv[1]](*sys.argv[2:])
