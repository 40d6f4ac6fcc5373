//! What NCCL finds in the environment of two ranks that are to share a GPU, which only tests want: by itself it refuses that.

/// The first version that lets ranks share one, if it is told so: 2.30.3.
pub const SHARES: (u32, u32, u32) = (2, 30, 3);

/// Two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Ranks are hosts of their own, which reach each other through sockets alone. With any version.
    Hosts,
    /// The library knows that they share one; from [`SHARES`] on.
    Shared,
}

impl Way {
    /// What the rank of a number is started with.
    pub fn environment(self, rank: usize) -> Vec<(&'static str, String)> {
        let all: &[(&'static str, &str)] = match self {
            Self::Hosts => &[
                ("NCCL_NET", "Socket"),
                ("NCCL_P2P_DISABLE", "1"),
                ("NCCL_SHM_DISABLE", "1"),
                ("NCCL_NVLS_ENABLE", "0"),
                ("NCCL_SOCKET_IFNAME", "lo"),
            ],
            // Few blocks: those of all ranks have to find room at a time, where the ranks are of one process or NVIDIA's MPS
            // runs. Else they take turns, and each waits in its own for what the other does in the next.
            Self::Shared => &[
                ("NCCL_MULTI_RANK_GPU_ENABLE", "1"),
                ("NCCL_MAX_CTAS", "4"),
                ("NCCL_NVLS_ENABLE", "0"),
                ("NCCL_SOCKET_IFNAME", "lo"),
            ],
        };
        let mut all: Vec<_> = all.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        if self == Self::Hosts {
            all.push(("NCCL_HOSTID", format!("host-{rank}")));
        }
        all
    }

    /// Why a version of NCCL does not go this way, if it does not; the version as [`Opened::version`](crate::Opened::version)
    /// gives it.
    pub fn refused_by(self, version: &str) -> Option<String> {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        if self == Self::Hosts || (next(), next(), next()) >= SHARES {
            return None;
        }
        let (major, minor, patch) = SHARES;
        let first = format!("{major}.{minor}.{patch} is the first that does");
        Some(format!("NCCL {version} lets no two ranks share a GPU, {first}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_that_are_hosts_have_different_names_and_all_else_in_common() {
        let [first, second] = [0, 1].map(|rank| Way::Hosts.environment(rank));
        let differ: Vec<&str> = first.iter().zip(&second).filter(|(a, b)| a != b).map(|(a, _)| a.0).collect();
        assert_eq!((first.len(), differ), (second.len(), vec!["NCCL_HOSTID"]));
        assert_eq!(Way::Shared.environment(0), Way::Shared.environment(1));
    }

    #[test]
    fn a_version_lets_ranks_share_a_gpu_or_is_named() {
        for version in ["2.30.3", "2.30.4", "2.31.0", "3.0.0"] {
            assert_eq!(Way::Shared.refused_by(version), None, "{version}");
        }
        for version in ["2.30.2", "2.29.9", "2.4.8", ""] {
            let why = Way::Shared.refused_by(version).unwrap();
            assert!(why.starts_with(&format!("NCCL {version} ")) && why.contains("2.30.3"), "{why}");
            assert_eq!(Way::Hosts.refused_by(version), None);
        }
    }
}
