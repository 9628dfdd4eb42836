//! What the shim tells the proxy on its command line: one JSON object.

use serde::Deserialize;

/// The proxy's settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The guest's vsock context id; the guest reads it from the device.
    pub guest_cid: u64,
    /// Host ports that the guest may dial.
    pub ports: Vec<u32>,
    /// Threads that serve requests of one file system besides the one that takes them; 0 for that one alone.
    pub thread_pool_size: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { guest_cid: 3, ports: vec![1024, 1025], thread_pool_size: 0 }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not these keys.
    #[error("cannot read the configuration")]
    Parse(#[from] serde_json::Error),
    /// 0, 1 and 2 are taken, and the header's addresses have 32 bits in Linux.
    #[error("{0} is no context id for a guest")]
    GuestCid(u64),
    /// More threads than are of use.
    #[error("a thread pool of {0} is beyond the limit of {MAX_THREADS}")]
    Threads(usize),
}

/// Most threads of one file system.
const MAX_THREADS: usize = 64;

impl Config {
    /// Reads and judges a configuration.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(json: &str) -> Result<Self, ConfigError> {
        let config: Self = serde_json::from_str(json)?;
        if config.guest_cid < 3 || config.guest_cid >= u64::from(u32::MAX) {
            return Err(ConfigError::GuestCid(config.guest_cid));
        }
        if config.thread_pool_size > MAX_THREADS {
            return Err(ConfigError::Threads(config.thread_pool_size));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, ConfigError};

    #[test]
    fn an_empty_object_is_the_default() {
        assert_eq!(Config::parse("{}").unwrap(), Config::default());
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = Config::parse(r#"{"guest_cdi":3}"#).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("guest_cdi"));
    }

    #[test]
    fn reserved_context_ids_and_silly_pools_are_refused() {
        for cid in ["0", "2", "4294967295"] {
            let json = format!(r#"{{"guest_cid":{cid}}}"#);
            assert!(matches!(Config::parse(&json), Err(ConfigError::GuestCid(_))));
        }
        let error = Config::parse(r#"{"thread_pool_size":65}"#);
        assert!(matches!(error, Err(ConfigError::Threads(65))));
    }
}
