//! Cards that are added to a running VM, and taken out again: each on a root port of PCI Express.
//!
//! ```text
//! free ──plug──► taken ── the guest lets go, asked by unplug or not ─► free
//! ```
//!
//! Nobody can make a guest let go. One that does not has a port less, and the host a tap and a task more, until it ends.
//! Nor can anybody keep it from that: it may do so of its own accord, and Linux's does by mistake. While a card is leaving, ACPI
//! tells of that again with whatever else happens on the bus, and what is told once more when the card has gone
//! ejects the one that is on the port by then. So each card is watched from its beginning.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::json;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use super::{COMMAND_DEADLINE, Qemu};
use crate::{
    HypervisorError, Nic,
    qmp::{Event, Qmp, QmpError},
};

/// QEMU's class of the error for a device that it has not, or no longer.
const NOT_FOUND: &str = "DeviceNotFound";

/// A card that was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plugged {
    port: usize,
    card: u64,
}

/// Which root ports have a card.
#[derive(Debug)]
pub(super) struct Ports {
    taken: Mutex<Taken>,
    /// How often one became free.
    freed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Taken {
    /// The card of each.
    ports: Vec<Option<u64>>,
    /// Those without one; the longest free comes first, for what a guest does late it does to the last.
    free: VecDeque<usize>,
    /// Cards so far: a name is never used again.
    cards: u64,
}

/// Name of a root port.
pub(super) fn port(number: usize) -> String {
    format!("port{number}")
}

impl Plugged {
    fn id(self) -> String {
        format!("card{}", self.card)
    }
}

impl Ports {
    pub(super) fn new(count: usize) -> Self {
        let taken = Taken { ports: vec![None; count], free: (0..count).collect(), cards: 0 };
        Self { taken: Mutex::new(taken), freed: watch::Sender::new(0) }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, plugged: Plugged) -> bool {
        self.taken().ports.get(plugged.port) == Some(&Some(plugged.card))
    }

    fn take(&self) -> Option<Plugged> {
        let mut taken = self.taken();
        let port = taken.free.pop_front()?;
        taken.cards += 1;
        taken.ports[port] = Some(taken.cards);
        Some(Plugged { port, card: taken.cards })
    }

    fn free(&self, plugged: Plugged) {
        let mut taken = self.taken();
        if let Some(port) = taken.ports.get_mut(plugged.port)
            && *port == Some(plugged.card)
        {
            *port = None;
            taken.free.push_back(plugged.port);
            drop(taken);
            self.freed.send_modify(|times| *times += 1);
        }
    }
}

impl Qemu {
    /// Whether there is a place for one more card.
    pub fn has_port(&self) -> bool {
        !self.ports.taken().free.is_empty()
    }

    /// Whether a card is still the VM's.
    pub fn has_card(&self, plugged: Plugged) -> bool {
        self.ports.has(plugged)
    }

    /// Changes whenever a place has become free.
    pub fn freed_ports(&self) -> watch::Receiver<u64> {
        self.ports.freed.subscribe()
    }

    /// Adds a card to the running VM; the guest finds it in its own time. None when there is no place for one.
    ///
    /// # Errors
    /// [`HypervisorError::State`] unless it runs; what QEMU says against it.
    pub async fn plug(&self, nic: Nic) -> Result<Option<Plugged>, HypervisorError> {
        let qmp = self.running("add a card to")?.qmp;
        let added = plug(&qmp, &self.ports, nic).await;
        added.map_err(|source| HypervisorError::Command { operation: "add a card", source })
    }

    /// Asks the guest to let go of a card; its place is free, and its tap gone, when it has.
    ///
    /// # Errors
    /// As of [`Qemu::plug`]; the card is as it was then, or leaves late.
    pub async fn unplug(&self, plugged: Plugged) -> Result<(), HypervisorError> {
        let qmp = self.running("take a card out of")?.qmp;
        let asked = ask(&qmp, plugged).await.map(drop);
        asked.map_err(|source| HypervisorError::Command { operation: "take a card out", source })
    }
}

async fn plug(qmp: &Qmp, ports: &Arc<Ports>, nic: Nic) -> Result<Option<Plugged>, QmpError> {
    let Some(plugged) = ports.take() else { return Ok(None) };
    let mut keeper = Keeper::new(qmp, ports, plugged);
    match add(qmp, plugged, nic, &mut keeper.descriptors).await {
        Ok(()) => {
            tokio::spawn(keeper.keep());
            Ok(Some(plugged))
        }
        Err(error) => {
            // What was not answered in time may still be done, so the port is free when QEMU has no such device.
            tokio::spawn(keeper.take_out());
            Err(error)
        }
    }
}

#[derive(Debug)]
enum Asked {
    Leaving,
    Gone,
}

/// Asks the guest to let go of a card.
async fn ask(qmp: &Qmp, plugged: Plugged) -> Result<Asked, QmpError> {
    let id = json!({ "id": plugged.id() });
    match qmp.execute_with("device_del", id, COMMAND_DEADLINE).await {
        Ok(_) => Ok(Asked::Leaving),
        Err(QmpError::Refused { class, .. }) if class == NOT_FOUND => Ok(Asked::Gone),
        Err(error) => Err(error),
    }
}

/// Waits for the end of a card, and frees what it had.
struct Keeper {
    qmp: Qmp,
    events: broadcast::Receiver<Event>,
    ports: Arc<Ports>,
    plugged: Plugged,
    /// Names of descriptors that QEMU was handed and has not used.
    descriptors: Vec<String>,
}

impl Keeper {
    fn new(qmp: &Qmp, ports: &Arc<Ports>, plugged: Plugged) -> Self {
        let (qmp, events, ports) = (qmp.clone(), qmp.events(), ports.clone());
        Self { qmp, events, ports, plugged, descriptors: Vec::new() }
    }

    /// Waits until the guest has let go, whoever wanted that. Ends with the VM.
    async fn keep(mut self) {
        while !self.hears_the_end().await {
            match self.is_there().await {
                Ok(false) => break,
                Ok(true) => {}
                Err(_) => return,
            }
        }
        self.free().await;
    }

    /// Whether QEMU has the card, however late it answers.
    async fn is_there(&self) -> Result<bool, QmpError> {
        let path = format!("/machine/peripheral/{}", self.plugged.id());
        let query = json!({ "path": path, "property": "type" });
        loop {
            match self.qmp.execute_with("qom-get", query.clone(), COMMAND_DEADLINE).await {
                Ok(_) => return Ok(true),
                Err(QmpError::Refused { class, .. }) => return Ok(class != NOT_FOUND),
                Err(QmpError::Deadline(_)) => {}
                Err(error @ QmpError::Closed) => return Err(error),
            }
        }
    }

    /// Asks the guest to let go, and waits until it has. Ends with the VM.
    async fn take_out(mut self) {
        let mut asked = false;
        while !(asked && self.hears_the_end().await) {
            match ask(&self.qmp, self.plugged).await {
                Ok(Asked::Gone) => break,
                // Refused, it is about to go already.
                Ok(Asked::Leaving) | Err(QmpError::Refused { .. }) => asked = true,
                Err(QmpError::Deadline(_)) => asked = false,
                Err(QmpError::Closed) => return,
            }
        }
        self.free().await;
    }

    /// Frees what a card had that is gone.
    async fn free(self) {
        let id = json!({ "id": self.plugged.id() });
        let mut freed = vec![("netdev_del", id)];
        freed.extend(self.descriptors.iter().map(|name| ("closefd", json!({ "fdname": name }))));
        for (command, arguments) in freed {
            if let Err(error) = self.qmp.execute_with(command, arguments, COMMAND_DEADLINE).await {
                tracing::debug!(%error, command, "remove the host's end of a card");
            }
        }
        self.ports.free(self.plugged);
    }

    /// Waits for the event; false when it may be among those that were lost.
    async fn hears_the_end(&mut self) -> bool {
        let gone = Event::DeviceDeleted(self.plugged.id());
        loop {
            tokio::select! {
                biased;
                event = self.events.recv() => match event {
                    Ok(event) if event == gone => return true,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_) | RecvError::Closed) => return false,
                },
                () = self.qmp.closed() => return false,
            }
        }
    }
}

/// Adds a card; `handed` has the descriptors that were not used.
async fn add(
    qmp: &Qmp,
    plugged: Plugged,
    nic: Nic,
    handed: &mut Vec<String>,
) -> Result<(), QmpError> {
    let (id, queues) = (plugged.id(), nic.taps.len());
    let mut netdev = json!({ "type": "tap", "id": id, "vhost": !nic.vhosts.is_empty() });
    for (key, fds) in [("fds", nic.taps), ("vhostfds", nic.vhosts)] {
        let first = handed.len();
        for (number, fd) in fds.into_iter().enumerate() {
            let name = format!("{id}-{key}{number}");
            handed.push(name.clone());
            qmp.hand_over(&name, fd, COMMAND_DEADLINE).await?;
        }
        if handed.len() > first {
            netdev[key] = handed[first..].join(":").into();
        }
    }
    qmp.execute_with("netdev_add", netdev, COMMAND_DEADLINE).await?;
    handed.clear();
    let mut device = json!({
        "driver": "virtio-net-pci", "id": id, "netdev": id, "mac": nic.mac.to_string(),
        "bus": port(plugged.port), "romfile": "",
    });
    if queues > 1 {
        device["mq"] = true.into();
        device["vectors"] = (2 * queues + 2).into();
    }
    qmp.execute_with("device_add", device, COMMAND_DEADLINE).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc, time::Duration};

    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::UnixStream,
        time::timeout,
    };

    use super::{Plugged, Ports, ask, plug};
    use crate::{MacAddress, Nic, qmp::Qmp};

    const LONG: Duration = Duration::from_secs(300);

    /// A monitor that expects these commands with their arguments' text, and answers with these lines; no line is no answer.
    fn monitor(script: Script) -> (Qmp, tokio::task::JoinHandle<()>) {
        let (near, far) = UnixStream::pair().unwrap();
        let played = tokio::spawn(async move {
            let (reader, mut writer) = far.into_split();
            let mut commands = BufReader::new(reader).lines();
            commands.next_line().await.unwrap();
            for (expected, answer) in script {
                let line = commands.next_line().await.unwrap().unwrap();
                let command: Value = serde_json::from_str(&line).unwrap();
                let name = command["execute"].as_str().unwrap();
                let arguments = &command["arguments"];
                let of =
                    ["fdname", "id", "path"].map(|key| arguments[key].as_str().unwrap_or_default());
                assert_eq!(format!("{name} {}", of.concat()), *expected);
                if answer.is_empty() {
                    continue;
                }
                let answer = answer.replace("$id", &command["id"].to_string());
                writer.write_all(answer.as_bytes()).await.unwrap();
                writer.write_all(b"\n").await.unwrap();
            }
            // Open until the other side has gone.
            commands.next_line().await.ok();
        });
        (Qmp::start(near), played)
    }

    fn nic() -> Nic {
        let taps = vec![File::open("/dev/null").unwrap().into()];
        Nic { taps, mac: MacAddress([2, 0, 0, 0, 0, 1]), vhosts: Vec::new() }
    }

    type Script = &'static [(&'static str, &'static str)];

    const DONE: &str = r#"{"return":{},"id":$id}"#;
    const REFUSED: &str = r#"{"error":{"class":"GenericError","desc":"no"},"id":$id}"#;
    const ABSENT: &str = r#"{"error":{"class":"DeviceNotFound","desc":"none"},"id":$id}"#;
    const GONE: &str = r#"{"event":"DEVICE_DELETED","data":{"device":"card1"},"timestamp":{}}"#;

    #[test]
    fn a_port_is_one_cards_and_a_name_is_used_once() {
        let ports = Ports::new(2);
        let (first, second) = (ports.take().unwrap(), ports.take().unwrap());
        assert_eq!(ports.take(), None);
        ports.free(first);
        let third = ports.take().unwrap();
        assert_eq!(third.port, first.port);
        assert!(third.id() != first.id() && third.id() != second.id());
        ports.free(first);
        assert!(ports.take().is_none() && !ports.has(first), "it is not the first one's any more");
        ports.free(second);
        ports.free(third);
        assert_eq!(ports.take().unwrap().port, second.port, "the longest free comes first");
        assert_eq!(Ports::new(0).take(), None);
    }

    /// Plugs a card, which fails with `said`, and waits for its port.
    async fn fails(script: Script, said: &str) {
        let (qmp, _played) = monitor(script);
        let ports = Arc::new(Ports::new(1));
        let mut freed = ports.freed.subscribe();
        let error = plug(&qmp, &ports, nic()).await.unwrap_err();
        assert_eq!(error.to_string(), said);
        timeout(LONG, freed.changed()).await.unwrap().unwrap();
        assert_eq!(ports.take(), Some(Plugged { port: 0, card: 2 }));
    }

    #[tokio::test]
    async fn a_refused_card_leaves_nothing_behind() {
        const SCRIPT: Script = &[
            ("getfd card1-fds0", DONE),
            ("netdev_add card1", DONE),
            ("device_add card1", REFUSED),
            ("device_del card1", ABSENT),
            ("netdev_del card1", DONE),
        ];
        fails(SCRIPT, "GenericError: no").await;
    }

    #[tokio::test]
    async fn descriptors_without_a_card_are_closed() {
        const SCRIPT: Script = &[
            ("getfd card1-fds0", DONE),
            ("netdev_add card1", REFUSED),
            ("device_del card1", ABSENT),
            ("netdev_del card1", ABSENT),
            ("closefd card1-fds0", DONE),
        ];
        fails(SCRIPT, "GenericError: no").await;
    }

    #[tokio::test]
    async fn a_card_that_comes_too_late_is_taken_out_again() {
        let gone = format!("{DONE}\n{GONE}");
        let script = [
            ("getfd card1-fds0", DONE),
            ("netdev_add card1", DONE),
            ("device_add card1", ""),
            ("device_del card1", &*gone.leak()),
            ("netdev_del card1", DONE),
        ];
        fails(&*script.to_vec().leak(), "no answer within 10s").await;
    }

    const ADDED: [(&str, &str); 3] =
        [("getfd card1-fds0", DONE), ("netdev_add card1", DONE), ("device_add card1", DONE)];

    /// A card that is plugged, and then what `script` says.
    async fn plugged(script: Script) -> (Qmp, tokio::task::JoinHandle<()>, Arc<Ports>, Plugged) {
        let (qmp, played) = monitor([&ADDED[..], script].concat().leak());
        let ports = Arc::new(Ports::new(1));
        let plugged = plug(&qmp, &ports, nic()).await.unwrap().unwrap();
        assert!(ports.has(plugged));
        (qmp, played, ports, plugged)
    }

    async fn leaves(script: Script) {
        let (qmp, _played, ports, plugged) = plugged(script).await;
        let mut freed = ports.freed.subscribe();
        ask(&qmp, plugged).await.unwrap();
        timeout(LONG, freed.changed()).await.unwrap().unwrap();
        assert!(!ports.has(plugged) && ports.take().is_some());
    }

    #[tokio::test]
    async fn the_end_may_come_before_the_answer() {
        let answer = format!("{GONE}\n{DONE}");
        let script = [("device_del card1", &*answer.leak()), ("netdev_del card1", REFUSED)];
        leaves(&*script.to_vec().leak()).await;
    }

    #[tokio::test]
    async fn of_lost_events_one_may_have_been_the_end() {
        let events = json!({"event": "STOP", "timestamp": {}}).to_string() + "\n";
        let answer = format!("{GONE}\n{}{DONE}", events.repeat(100));
        let script = [
            ("device_del card1", &*answer.leak()),
            ("qom-get /machine/peripheral/card1", ABSENT),
            ("netdev_del card1", DONE),
        ];
        leaves(&*script.to_vec().leak()).await;
    }

    #[tokio::test]
    async fn a_card_that_goes_unasked_is_gone() {
        let added = format!("{DONE}\n{GONE}");
        let script =
            [ADDED[0], ADDED[1], ("device_add card1", &*added.leak()), ("netdev_del card1", DONE)];
        let (qmp, _played) = monitor(&*script.to_vec().leak());
        let ports = Arc::new(Ports::new(1));
        let mut freed = ports.freed.subscribe();
        let plugged = plug(&qmp, &ports, nic()).await.unwrap().unwrap();
        timeout(LONG, freed.changed()).await.unwrap().unwrap();
        assert!(!ports.has(plugged) && ports.take().is_some());
    }

    #[tokio::test]
    async fn a_card_that_may_not_go_keeps_its_port() {
        let (qmp, _played, ports, plugged) = plugged(&[("device_del card1", REFUSED)]).await;
        ask(&qmp, plugged).await.unwrap_err();
        assert!(ports.has(plugged) && ports.take().is_none());
    }

    #[tokio::test]
    async fn nothing_waits_for_a_vm_that_has_ended() {
        let (qmp, played, ports, plugged) = plugged(&[("device_del card1", DONE)]).await;
        ask(&qmp, plugged).await.unwrap();
        played.abort();
        qmp.closed().await;
        timeout(LONG, async {
            while Arc::strong_count(&ports) > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
