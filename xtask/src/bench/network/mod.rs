//! The network of a pod: what it carries between the container and a peer on the other end of its link, over what the
//! same guest carries by the best of the ways that a person would lay by hand, and over a container of runc.
//!
//! ```text
//! peer's namespace: peer0 ── eth0 :pod's namespace ── (way) ── tap ── guest
//!     asks and counts                                            serves
//! ```

mod appear;
mod pair;
mod scene;
mod way;

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use self::scene::{Scene, V4, V6};
use self::way::{Served, Way};
use super::container::{Container, Source};
use super::patience;
use super::report::{Report, Target};
use super::sample::Sample;
use super::stand::Stand;
use super::vmm_line::VmmLine;

/// One kind of traffic, as the benchmark's program is asked for it.
struct Traffic {
    name: &'static str,
    kind: &'static str,
    streams: &'static str,
}

const fn traffic(name: &'static str, kind: &'static str, streams: &'static str) -> Traffic {
    Traffic { name, kind, streams }
}

const TRAFFIC: [Traffic; 9] = [
    traffic("1 stream in", "in", "1"),
    traffic("4 streams in", "in", "4"),
    traffic("8 streams in", "in", "8"),
    traffic("1 stream out", "out", "1"),
    traffic("4 streams out", "out", "4"),
    traffic("8 streams out", "out", "8"),
    traffic("64-byte datagrams in", "datagrams-in", "1"),
    traffic("64-byte datagrams out", "datagrams-out", "1"),
    traffic("round trip", "echo", "1"),
];

/// How long each is measured.
const MILLISECONDS: &str = "400";

const FAMILIES: [(&str, &str); 2] = [("IPv4", V4), ("IPv6", V6)];

/// Figures of one way in one round, by their names.
type Figures = BTreeMap<String, f64>;

pub fn measure(stand: &Stand, rounds: usize, report: &mut Report) -> Result<()> {
    let line = look_at_vmm(stand)?;
    let mut all: Vec<BTreeMap<Way, Figures>> = Vec::new();
    for _ in 0..rounds {
        let mut round = BTreeMap::new();
        for way in Way::ALL {
            let figures = one(stand, &line, way);
            round.insert(way, figures.with_context(|| format!("measure {}", way.name()))?);
        }
        all.push(round);
    }
    note(&all, report)?;
    appear::measure(stand, rounds, report)?;
    pair::measure(stand, rounds, report)
}

/// The VMM's command line of a container with one link, which bare guests get too.
fn look_at_vmm(stand: &Stand) -> Result<VmmLine> {
    let scene = Scene::new(stand, true)?;
    let bundle = stand.bundle("linked", &["byte"], |spec| scene.enter(spec))?;
    let container = Container::start(stand, Source::Bundle(&bundle))?;
    patience::read(&container.stdout, &mut [0], "the first byte of a container")?;
    let line = container.vmm_line()?;
    container.finish()?;
    Ok(line)
}

fn one(stand: &Stand, line: &VmmLine, way: Way) -> Result<Figures> {
    let scene = Scene::new(stand, way.is_addressed())?;
    let served = Served::start(stand, line, &scene, way)?;
    let figures = carried(|words| scene.ask(words))?;
    served.finish()?;
    Ok(figures)
}

/// All kinds of traffic, as one end asks for them.
fn carried(ask: impl Fn(&[&str]) -> Result<String>) -> Result<Figures> {
    let mut figures = Figures::new();
    for (family, address) in FAMILIES {
        for Traffic { name, kind, streams } in TRAFFIC {
            let text = ask(&["ask", address, kind, streams, MILLISECONDS])?;
            let numbers: Vec<f64> = text
                .split_whitespace()
                .map(|number| number.parse().context("understand a figure"))
                .collect::<Result<_>>()?;
            match numbers[..] {
                [median, tail] => {
                    figures.insert(format!("{family} {name}, p50"), median);
                    figures.insert(format!("{family} {name}, p99"), tail);
                }
                _ => {
                    let figure = numbers.first().context("no figure")?;
                    figures.insert(format!("{family} {name}"), *figure);
                }
            }
        }
    }
    Ok(figures)
}

/// Each figure of Kata's, over the best of those laid by hand, and over runc's: more is better, of times too.
fn note(rounds: &[BTreeMap<Way, Figures>], report: &mut Report) -> Result<()> {
    let names = rounds.first().and_then(|round| round.get(&Way::Kata)).context("no rounds")?.keys();
    for name in names {
        let (unit, is_time) = unit(name);
        let of = |way: Way| -> Result<Vec<f64>> {
            let figures = rounds.iter().map(|round| round.get(&way)?.get(name).copied());
            figures.collect::<Option<_>>().with_context(|| format!("no {name:?} of {way:?}"))
        };
        for way in Way::ALL {
            let sample = Sample::new(of(way)?).context("no rounds")?;
            report.add(format!("{name}: {}", way.name()), unit, &sample);
        }
        let over = |way: Way| -> Result<Sample> {
            let (kata, other) = (of(Way::Kata)?, of(way)?);
            let ratios =
                if is_time { Sample::ratios(&other, &kata) } else { Sample::ratios(&kata, &other) };
            ratios.context("no rounds")
        };
        let by_hand = Way::BY_HAND.map(over).into_iter().collect::<Result<Vec<_>>>()?;
        // The best way is the one over which Kata's figure is the least.
        let best = by_hand.into_iter().min_by(|one, other| one.median().total_cmp(&other.median()));
        let best = best.context("no way by hand")?;
        report.add_judged(
            format!("{name} over the best by hand"),
            "x",
            &best,
            Target::AtLeast(0.95),
        );
        report.add(format!("{name} over runc's"), "x", &over(Way::Runc)?);
    }
    Ok(())
}

/// What a figure is in, and whether it is a time.
fn unit(name: &str) -> (&'static str, bool) {
    match name {
        name if name.contains("round trip") => ("us", true),
        name if name.contains("datagrams") => ("1/s", false),
        _ => ("MB/s", false),
    }
}
