//! The command line as a whole.
use clap::{CommandFactory as _, Parser as _};
use elastic::cli::Cli;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;

#[test]
fn every_mode_s_flags_fit_together() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_has_help_and_an_environment_variable() {
    for mode in Cli::command().get_subcommands() {
        for flag in mode.get_arguments().filter(|flag| flag.get_long().is_some()) {
            let name = format!("{} --{}", mode.get_name(), flag.get_long().unwrap());
            if ["help", "version"].contains(&flag.get_long().unwrap()) {
                continue;
            }
            assert!(flag.get_help().is_some(), "{name} has no help");
            // How a child is run is for its parent to say, and a verb's own flags are not settings.
            let exempt = ["child", "json", "quiet", "force", "top-k"].contains(&flag.get_long().unwrap());
            let variable = flag.get_env().map(|variable| variable.to_string_lossy().into_owned());
            let named = variable.as_deref().is_some_and(|variable| variable.starts_with("ELASTIC_"));
            assert!(exempt || named, "{name} has no ELASTIC_ variable but {variable:?}");
        }
    }
}

#[test]
fn wrong_flags_are_refused_with_a_hint() {
    let error = Cli::try_parse_from(["elastic", "dispatch", "--prot", "1"]).unwrap_err().to_string();
    assert!(error.contains("--port"), "{error}");
    let error = Cli::try_parse_from(["elastic", "dispatch", "--timeout", "5"]).unwrap_err().to_string();
    assert!(error.contains("as in 250ms"), "{error}");
}

/// The web may be behind a proxy, here one that has nothing.
#[tokio::test]
async fn weights_are_fetched_through_the_proxy_of_the_environment() {
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = "http://weights.invalid/mobilenet_v2-0123456789.pth";
    let mut fetch = Command::new(env!("CARGO_BIN_EXE_elastic"));
    fetch.args(["weights", "fetch", "--url", url, "--dir"]).arg(folder.path()).env_clear();
    fetch.env("HTTP_PROXY", format!("http://{}", proxy.local_addr().unwrap()));
    let asked = async {
        let (mut connection, _) = proxy.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = connection.read(&mut request).await.unwrap();
        connection.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    };
    let mut output = std::pin::pin!(fetch.output());
    let request = tokio::select! {
        request = asked => request,
        output = &mut output => panic!("it never asked the proxy: {output:?}"),
    };
    assert!(request.starts_with(&format!("GET {url} HTTP/1.1")), "{request}");
    let output = output.await.unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("404"), "{said}");
}
