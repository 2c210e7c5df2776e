//! Where Postgres and NATS come from.

use std::env;

use crate::wait::must;

/// The choice of `TEST_BACKEND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Programs of this machine, or fetched ones.
    Local,
    /// Containers.
    #[cfg(feature = "docker")]
    Docker,
}

impl Backend {
    pub(crate) fn chosen() -> Self {
        let choice = env::var("TEST_BACKEND").unwrap_or_default();
        must(Self::named(&choice), "TEST_BACKEND")
    }

    /// The major version of its Postgres, where that is not the one of the programs of this machine.
    pub(crate) fn postgres_major(self) -> Option<u32> {
        match self {
            Self::Local => None,
            #[cfg(feature = "docker")]
            Self::Docker => Some(crate::docker::postgres_major()),
        }
    }

    fn named(choice: &str) -> Result<Self, String> {
        match choice {
            "" | "local" => Ok(Self::Local),
            #[cfg(feature = "docker")]
            "docker" => Ok(Self::Docker),
            #[cfg(not(feature = "docker"))]
            "docker" => Err("needs the feature: cargo test --features tests/docker".to_owned()),
            other => Err(format!("is `{other}`; it can be `local` or `docker`")),
        }
    }
}
