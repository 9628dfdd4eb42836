//! The two virtio-fs devices: what each promises the guest about caching, and how names and attributes map.

pub mod pressure;
mod settled;
mod singles;

use std::{fs::File, io, sync::Arc, time::Duration};

use virtiofsd::{
    passthrough::{self, CachePolicy, PassthroughFs, xattrmap::XattrMap},
    vhost_user::VhostUserFsBackendBuilder,
};

use pressure::{Pressure, PressureBackend};
use settled::{Changes, Settled};

/// The back end of one share.
pub type ShareBackend = Arc<PressureBackend<Settled>>;

/// One of the two halves of the shared tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// Root file systems of containers; nobody else changes them while the sandbox lives.
    Roots,
    /// Bind sources; the host and other sandboxes may change them at any time.
    Volumes,
}

/// A share that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The table of attribute names is wrong.
    #[error("cannot map attribute names")]
    AttributeMap(#[source] virtiofsd::passthrough::xattrmap::Error),
    /// The tree cannot be opened.
    #[error("cannot open the {tag} share at {path}")]
    Open {
        /// Tag of the share.
        tag: &'static str,
        /// Where its tree is.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The device's timer cannot be made.
    #[error("cannot make a timer for the {tag} share")]
    Timer {
        /// Tag of the share.
        tag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The device cannot be made.
    #[error("cannot make the device of the {tag} share")]
    Device {
        /// Tag of the share.
        tag: &'static str,
        /// Why.
        source: virtiofsd::vhost_user::Error,
    },
}

/// In a user namespace `trusted.` attributes belong to nobody; overlay file systems of the guest keep theirs under
/// another name, which the guest can't see by itself.
const ATTRIBUTE_MAP: &str = "/prefix/all/trusted./user.virtiofs./ \
                             /bad/server//trusted./ \
                             /bad/client/user.virtiofs.// \
                             /ok/all///";

impl Share {
    /// The tag that the guest mounts.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Roots => "roots",
            Self::Volumes => "volumes",
        }
    }

    /// The device that serves the share's half of `tree`.
    ///
    /// `proc_self_fd` is the directory of that name: there is no /proc where the proxy ends up. `threads` are those that serve
    /// requests besides the one that takes them.
    ///
    /// # Errors
    /// [`ShareError`].
    pub fn backend(
        self,
        tree: &str,
        proc_self_fd: File,
        pressure: Pressure,
    ) -> Result<ShareBackend, ShareError> {
        let tag = self.tag();
        let path = format!("{}/{tag}", tree.trim_end_matches('/'));
        let config = passthrough::Config {
            root_dir: path.clone(),
            proc_sfd_rawfd: Some(proc_self_fd),
            guest_fd_limit: pressure.guests(),
            xattrmap: Some(XattrMap::try_from(ATTRIBUTE_MAP).map_err(ShareError::AttributeMap)?),
            ..self.caching()
        };
        let fs =
            PassthroughFs::new(config).map_err(|source| ShareError::Open { tag, path, source })?;
        let device = VhostUserFsBackendBuilder::default()
            // The thread that takes requests serves them.
            .set_thread_pool_size(0)
            .set_tag(Some(tag.to_owned()))
            .build(Settled::new(fs, self.changes(), pressure.clone()))
            .map_err(|source| ShareError::Device { tag, source })?;
        let backend = PressureBackend::new(device, pressure);
        Ok(Arc::new(backend.map_err(|source| ShareError::Timer { tag, source })?))
    }

    fn changes(self) -> Changes {
        match self {
            Self::Roots => Changes::Guests,
            Self::Volumes => Changes::Anybodys,
        }
    }

    fn caching(self) -> passthrough::Config {
        let (cache_policy, timeout, writeback) = match self {
            // A day: as good as for ever, since nothing changes behind the guest's back.
            Self::Roots => (CachePolicy::Always, Duration::from_secs(86_400), true),
            // But for files that are volumes by themselves: `singles`.
            Self::Volumes => (CachePolicy::Auto, Duration::from_secs(1), false),
        };
        passthrough::Config {
            entry_timeout: timeout,
            attr_timeout: timeout,
            cache_policy,
            writeback,
            xattr: true,
            // Otherwise the guest asks for security.capability before each write(2): 3,000 appends took 0.96 s, not 0.01.
            killpriv_v2: true,
            // An inode descriptor for each name that is merely listed is what a large tree can't afford.
            readdirplus: false,
            announce_submounts: true,
            ..passthrough::Config::default()
        }
    }
}
