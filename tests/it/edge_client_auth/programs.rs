//! Visitors who are real programs.

use adit::edge::certificates::ClientAuth;
use tokio::process::Command;

use super::{Papers, entry, heard, item, lab};
use crate::harness::{LIMIT, Over, over_both};

async fn run(command: &mut Command) -> String {
    let output = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await.expect("it hangs").unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn curl(over: Over) {
    let papers = Papers::new();
    let leaf = papers.trusted.leaf(&["caller.test"]);
    papers.write("caller.pem", &leaf.certificate);
    papers.write("caller.key", &leaf.key);
    let lab = lab(over, vec![entry(&["required.web.test"], ClientAuth::Required, papers.trust())]).await;
    let port = lab.https.port();
    let url = format!("https://required.web.test:{port}/");
    for version in ["--http1.1", "--http2"] {
        for shows in [false, true] {
            let mut command = Command::new("curl");
            command.args(["-sS", version, "-w", "\nstatus %{http_code}", "--resolve"]);
            command.arg(format!("required.web.test:{port}:127.0.0.1")).arg("--cacert").arg(lab.state.ca_path());
            if shows {
                command.arg("--cert").arg(papers.path("caller.pem")).arg("--key").arg(papers.path("caller.key"));
            }
            let said = run(command.arg(&url)).await;
            let expected = if shows { "status 200" } else { "caller-missing\n\nstatus 403" };
            assert!(said.ends_with(expected), "{version}: {said}");
            let relayed = shows.then(|| item(&leaf.chain()[0]));
            assert_eq!(heard(&said, "client-cert"), relayed.as_deref(), "{version}: {said}");
        }
    }
    lab.finish().await;
}

async fn openssl(over: Over) {
    let papers = Papers::new();
    let lab = lab(over, vec![entry(&["required.web.test"], ClientAuth::Required, papers.trust())]).await;
    for version in ["-tls1_2", "-tls1_3"] {
        for (name, asked) in [("required.web.test", true), ("web.test", false)] {
            let mut command = Command::new("openssl");
            command.args(["s_client", version, "-servername", name, "-connect", &lab.https.to_string()]);
            let said = run(command.stdin(std::process::Stdio::null())).await;
            // Whom to ask for a certificate, and whose certificates count.
            // OpenSSL spells names with blanks around the sign in some versions.
            assert_eq!(said.replace(' ', "").contains("CN=trusted"), asked, "{name}: {said}");
            assert_eq!(said.contains("No client certificate CA names sent"), !asked, "{name}: {said}");
        }
    }
    lab.finish().await;
}

over_both! {
    #[ignore = "needs curl in the PATH; .ci/run installs and runs it"]
    curl_shows_its_certificate_where_it_is_asked => curl,
    #[ignore = "needs openssl in the PATH; .ci/run installs and runs it"]
    openssl_is_asked_for_a_certificate_by_its_server_name_alone => openssl,
}
