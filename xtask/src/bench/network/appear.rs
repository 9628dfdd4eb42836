//! How long a link that appears in a pod's namespace takes until a server in the guest is reached through it: by a card that
//! waited for it, or by one that is added to the running VM.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::container::{Container, Source};
use super::super::patience;
use super::super::report::{Report, Target};
use super::super::sample::Sample;
use super::super::stand::Stand;
use super::scene::Scene;
use super::way::SERVE;

/// Where the benchmark's program serves, on each link.
const PORT: u16 = 5201;
/// An attempt that is not answered by then was too early.
const ATTEMPT: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

/// A way for the new link, and what is promised of it.
struct Card {
    name: &'static str,
    machine: &'static str,
    /// How many links come before, and take the card that waits.
    before: u8,
    milliseconds: f64,
}

const CARDS: [Card; 2] = [
    Card { name: "a card that waits", machine: "microvm", before: 0, milliseconds: 100.0 },
    Card { name: "a card that is added", machine: "q35", before: 1, milliseconds: 600.0 },
];

pub fn measure(stand: &Stand, rounds: usize, report: &mut Report) -> Result<()> {
    for card in CARDS {
        let times: Result<Vec<f64>> = (0..rounds).map(|_| one(stand, &card)).collect();
        let times = times.with_context(|| format!("measure {}", card.name))?;
        let sample = Sample::new(times).context("no rounds")?;
        let name = format!("new link → usable, {}", card.name);
        report.add_judged(name, "ms", &sample, Target::AtMost(card.milliseconds));
    }
    Ok(())
}

fn one(stand: &Stand, card: &Card) -> Result<f64> {
    let scene = Scene::new(stand, true)?;
    let bundle = stand.bundle("appearing", SERVE, |spec| {
        scene.enter(spec);
        spec["annotations"]["io.katacontainers.hypervisor.machine"] = json!(card.machine);
        spec["annotations"]["io.katacontainers.network.spare_nics"] = json!("1");
    })?;
    let container = Container::start(stand, Source::Bundle(&bundle))?;
    patience::read(&container.stdout, &mut [0], "the word that it serves")?;
    let mut took = Duration::ZERO;
    for number in 1..=card.before + 1 {
        let begun = Instant::now();
        let address = scene.add_link(number)?;
        scene.inside_peer(|| reached((address, PORT).into()))?;
        took = begun.elapsed();
    }
    container.kill()?;
    Ok(took.as_secs_f64() * 1000.0)
}

/// Waits until a connection is answered.
fn reached(server: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    loop {
        match TcpStream::connect_timeout(&server, ATTEMPT) {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => bail!("connect to {server}: {error}"),
            Err(_) => {}
        }
    }
}
