//! The sandbox's network, from before the VM to after its end.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::fd::OwnedFd,
    sync::Arc,
};

use kata_config::NetworkModel;
use kata_protocol::{agent, sysctl};
use tokio::sync::watch;

use super::{Common, Sandbox, SandboxError};
use crate::{
    agent::Agent,
    network::{self, Attached, Means, Mirror, Namespace, NetworkError, localhost},
    vm::{self, Ports, Vm},
};

impl Common {
    /// Takes parameters of the network namespace, for which the engine does not ask in its own words.
    fn inherit(&mut self, sysctls: BTreeMap<String, String>) {
        let asked: BTreeSet<String> =
            self.sysctls.keys().map(|name| sysctl::path_of_name(name)).collect();
        self.inherited_sysctls =
            sysctls.into_iter().filter(|(name, _)| !asked.contains(name)).collect();
    }
}

/// Of the kernel parameters for which nobody has asked, those that the guest says it has not set; for people.
pub(super) fn left_out(
    request: &agent::StartSandboxRequest,
    answer: &agent::StartSandboxResponse,
) -> Option<String> {
    let links = request.network.links.iter();
    let of_links = links
        .flat_map(|link| link.sysctls.keys().filter_map(|name| sysctl::path(&link.name, name)));
    let told = request.inherited_sysctls.keys().cloned().chain(of_links);
    // Of what it says nothing else is of interest, and it may say much.
    let said: HashSet<&String> = answer.left_out.iter().collect();
    let left_out: BTreeSet<String> = told.filter(|name| said.contains(name)).collect();
    let names: Vec<&str> = left_out.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| format!("refused by the guest: {}", names.join(", ")))
}

impl Sandbox {
    /// Sets those of kernel parameters, by their names, that are the network's, in the namespace that the guest's is to be like.
    ///
    /// # Errors
    /// [`SandboxError::Network`].
    pub fn set_sysctls(
        &self,
        namespace: &Namespace,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), SandboxError> {
        match self.settings.vm.network_model {
            NetworkModel::None => Ok(()),
            _ => Ok(network::set_sysctls(namespace, sysctls, &self.steps)?),
        }
    }

    /// Passes the links of a namespace through, as they are now.
    pub(super) async fn attach_network(
        &self,
        namespace: Option<Namespace>,
        own_sockets: bool,
    ) -> Result<(Option<Mirror>, Attached, Option<localhost::Plan>), SandboxError> {
        let Some(namespace) = namespace else { return Ok((None, Attached::default(), None)) };
        let model = self.settings.vm.network_model;
        if model == NetworkModel::None {
            self.network_note.send_replace("loopback alone, as the configuration asks".into());
            return Ok((None, Attached::default(), None));
        }
        let claim = namespace.claim()?;
        self.live().claim = Some(claim.clone());
        let localhost = localhost::Plan {
            namespace: namespace.try_clone()?,
            claim: claim.clone(),
            ledger: self.ledger.clone(),
            steps: self.steps.clone(),
        };
        let means = Means {
            claim,
            ledger: self.ledger.clone(),
            steps: self.steps.clone(),
            own_sockets,
            model,
            rates: self.settings.vm.rates,
            queues: vm::queues(&self.settings.vm),
            note: self.network_note.clone(),
        };
        let disks = self.live().disks.len();
        let spares = |links| vm::spare_nics(&self.settings.vm, links + disks);
        let (mirror, attached) = network::attach(namespace, means, spares).await?;
        Ok((Some(mirror), attached, Some(localhost)))
    }

    /// Lets the guest have the kernel parameters that were set in the namespace, once they are known.
    pub(super) async fn pass_sysctls(
        mirror: Option<&mut Mirror>,
        change: &mut agent::NetworkChange,
        common: &mut Common,
    ) -> Result<(), NetworkError> {
        if let Some(mirror) = mirror {
            common.inherit(mirror.settle_sysctls(change).await?);
        }
        Ok(())
    }

    /// Leads localhost of the namespace into the guest, where the host's kernel can.
    pub(super) fn open_localhost(&self, plan: Option<localhost::Plan>) -> Result<(), SandboxError> {
        let Some(plan) = plan else { return Ok(()) };
        let note = match plan.open()? {
            Ok(listeners) => {
                self.live().localhost = listeners;
                "leads into the guest".to_owned()
            }
            Err(error) => {
                tracing::warn!(%error, "localhost of the network namespace does not lead into the guest: nf_tables' tproxy or socket failed");
                format!("does not lead into the guest: nf_tables with tproxy and socket: {error}")
            }
        };
        self.live().facts.notes.insert("localhost".into(), note);
        Ok(())
    }

    /// Listeners whose connections are for the guest's localhost, for the process that lives in the namespace; once.
    pub fn take_localhost(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.live().localhost)
    }

    /// Lets the guest follow its namespace until either is gone.
    pub(super) fn follow_network(self: &Arc<Self>, mirror: Option<Mirror>, agent: Agent, vm: Vm) {
        let Some(mirror) = mirror else { return };
        let ports = Ports::of(vm, &self.settings.vm);
        let sandbox = self.clone();
        let follower = tokio::spawn(async move {
            tokio::select! {
                () = mirror.follow(agent, ports) => {}
                _ = sandbox.lost() => {}
            }
        });
        self.live().follower = Some(follower);
    }

    /// Touches the namespace no more.
    pub(super) async fn leave_network(&self) {
        let (follower, claim) = {
            let mut live = self.live();
            (live.follower.take(), live.claim.take())
        };
        if let Some(follower) = follower {
            follower.abort();
            // Cancelled, or over already: both is what is wanted.
            follower.await.ok();
        }
        if let Some(claim) = claim {
            claim.release();
        }
    }

    /// How each link of the namespace is passed to the guest; changes as the namespace does.
    pub fn network_note(&self) -> watch::Receiver<String> {
        self.network_note.subscribe()
    }
}
