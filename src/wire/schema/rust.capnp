@0x83b3c14c3c8dd083;
# The one annotation of the Rust code generator that our schemas use.

annotation parentModule @0xabee386cd1450364 (file) :Text;
