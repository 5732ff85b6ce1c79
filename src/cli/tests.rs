//! Commands from their arguments to what is printed, over a real socket.

use clap::Parser;

use super::args::{Cli, Command};
use super::{Asker, Failure, NOT_READY};
use crate::api::client::Client;
use crate::api::tests::{Fixture, block_on, fixture, session_view};
use crate::api::views::{AcceptedView, EventView, Page, StatusView};
use crate::api::{ApiError, ErrorCode, Reply, Request};
use crate::metrics::Waiting;
use crate::types::Generation;

/// What is printed, or the sentence or code of the failure.
fn killick(fixture: &Fixture, line: &str) -> Result<String, String> {
    let cli = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
    let Command::Ask(ask) = &cli.command else { panic!("{line} asks nobody") };
    let mut asker = Asker { client: fixture.client.clone(), output: cli.output, out: Vec::new() };
    match block_on(asker.ask(ask)) {
        Ok(()) => Ok(String::from_utf8(asker.out).unwrap()),
        Err(Failure::Say(sentence)) => Err(sentence),
        Err(Failure::Said(code)) => Err(format!("exit {code}")),
        Err(Failure::NobodyReads) => panic!("a vector is read"),
    }
}

fn sessions() -> Fixture {
    fixture(|request| {
        Some(match request {
            Request::Sessions(paging) => {
                let from: usize = paging.cursor.map_or(0, |cursor| cursor.parse().unwrap());
                // Smaller pages than asked for are allowed.
                let to = (from + paging.limit.min(7)).min(20);
                let items = (from..to).map(|n| session_view(n as u32)).collect();
                Ok(Reply::Sessions(Page { items, next: (to < 20).then(|| to.to_string()) }))
            }
            Request::Attach(attach) => Ok(Reply::Accepted(AcceptedView {
                mn: attach.mn,
                prefixes: attach.prefixes,
                anchor: attach.anchor,
                generation: Generation(3),
            })),
            Request::Status => Ok(Reply::Status(Box::default())),
            _ => Err(ApiError::new(ErrorCode::NotFound, "no such node")),
        })
    })
}

#[test]
fn a_listing_is_one_table_over_all_pages() {
    let fixture = sessions();
    let table = killick(&fixture, "killick mobility sessions").unwrap();
    assert_eq!(table.lines().count(), 21);
    assert_eq!(table.matches("PREFIX").count(), 1);
    assert!(table.lines().nth(20).unwrap().starts_with("mn19"), "{table}");
    let some = killick(&fixture, "killick mobility sessions --limit 9").unwrap();
    assert_eq!(some.lines().count(), 10);
}

#[test]
fn json_is_what_the_daemon_said() {
    let fixture = sessions();
    let lines = killick(&fixture, "killick -o json mobility sessions").unwrap();
    assert_eq!(lines.lines().count(), 3, "a line for each page");
    let first = block_on(fixture.client.get("/v1/mobility/sessions?limit=7")).unwrap();
    assert_eq!(lines.lines().next().unwrap().as_bytes(), first.trim_ascii_end());
    let status = killick(&fixture, "killick status -o json").unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["kind"], "status");
    assert!(serde_json::from_value::<StatusView>(status["data"].clone()).is_ok());
}

#[test]
fn arguments_become_requests() {
    let fixture = sessions();
    let line = "killick attach car7 10.1.0.7 2001:db8::/64 --anchor 192.0.2.2 --fe-e4 192.0.2.2";
    assert_eq!(
        killick(&fixture, line).unwrap(),
        "car7 at 192.0.2.2, generation 3: 10.1.0.7/32, 2001:db8::/64\n"
    );
    for line in [
        "killick trace car7",
        "killick detach car7",
        "killick mobility session 10.1.0.7",
        "killick mobility move car7 192.0.2.3",
        "killick ctx get car7",
        "killick bgp routes 10.1.0.7",
    ] {
        assert_eq!(killick(&fixture, line).unwrap_err(), "no such node", "{line}");
    }
}

#[test]
fn health_is_an_exit_code() {
    let fixture = sessions();
    let not_ready = format!("exit {NOT_READY}");
    assert_eq!(killick(&fixture, "killick healthcheck").unwrap_err(), not_ready);
    assert_eq!(killick(&fixture, "killick status --wait --timeout 0").unwrap_err(), not_ready);
    for what in Waiting::ALL {
        fixture.metrics.health.done(what);
    }
    assert_eq!(killick(&fixture, "killick healthcheck").unwrap(), "ready\n");
    assert!(killick(&fixture, "killick status --wait --timeout 5").unwrap().contains("mode"));
}

#[test]
fn the_monitor_ends_when_the_daemon_does() {
    let fixture = sessions();
    let cli = Cli::try_parse_from(["killick", "monitor"]).unwrap();
    let Command::Ask(ask) = &cli.command else { panic!() };
    let mut asker = Asker { client: fixture.client.clone(), output: cli.output, out: Vec::new() };
    block_on(async {
        tokio::select! {
            _ = asker.ask(ask) => panic!("the stream ended"),
            () = async {
                while !fixture.events.has_readers() {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                fixture.events.send(crate::api::views::Event::Ready);
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            } => {}
        }
    });
    let event: EventView = serde_json::from_slice(&asker.out).unwrap();
    assert_eq!(event.event, crate::api::views::Event::Ready);
}

#[test]
fn nobody_at_the_socket_is_said_with_what_to_do() {
    let client = Client::new(std::path::Path::new("/nonexistent/api.sock"));
    let error = block_on(client.get("/v1/status")).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/api.sock") && error.contains("killick run"), "{error}");
}
