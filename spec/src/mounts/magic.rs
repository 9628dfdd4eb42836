//! What statfs(2) says of file systems that are a kernel's own (`linux/magic.h`).

use std::path::Path;

/// What statfs(2) says of a tmpfs.
pub const TMPFS_MAGIC: u64 = 0x0102_1994;
const PROC_MAGIC: u64 = 0x9fa0;
pub(super) const SYSFS_MAGIC: u64 = 0x6265_6572;
pub(super) const CGROUP_MAGIC: u64 = 0x0027_e0eb;
pub(super) const CGROUP2_MAGIC: u64 = 0x6367_7270;

const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// File systems that show and steer the kernel that they are of.
const VIEWS_OF_A_KERNEL: &[u64] = &[
    PROC_MAGIC,
    SYSFS_MAGIC,
    CGROUP_MAGIC,
    CGROUP2_MAGIC,
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0xcafe_4a11, // bpf
    0x7363_6673, // securityfs
    0xf97c_ff8c, // selinuxfs
    0x6265_6570, // configfs
    0x6573_5543, // fusectl
    0xde5e_81e4, // efivarfs
    0x6165_676c, // pstore
    0x4249_4e4d, // binfmt_misc
];

/// Why a directory or file of such a file system is nothing for a guest; none when it is.
pub(super) fn why_not_shared(magic: u64, source: &Path) -> Option<String> {
    let source = source.display();
    if VIEWS_OF_A_KERNEL.contains(&magic) {
        return Some(format!("{source} shows the host's kernel, not the guest's"));
    }
    // Its files are written to by mapping them alone, which can't be done from another kernel.
    let huge = format!("{source} is of huge pages of the host, which a VM can't map");
    (magic == HUGETLBFS_MAGIC).then_some(huge)
}
