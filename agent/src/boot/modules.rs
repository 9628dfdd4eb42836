//! Kernel modules, for a guest kernel that has not everything built in.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use rustix::{io::Errno, system::finit_module};

use super::{BootError, During};

/// Names of module files, one a line, each after those that it needs.
const ORDER: &str = "/modules/order";

/// Loads what the initrd lists; most have no list.
pub fn load() -> Result<(), BootError> {
    let order = match fs::read_to_string(ORDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        order => order.during(format!("read {ORDER}"))?,
    };
    for name in order.lines().filter(|name| !name.is_empty()) {
        let path = Path::new("/modules").join(name);
        let file = File::open(&path).during(format!("open module {}", path.display()))?;
        match finit_module(&file, c"", 0) {
            Err(Errno::EXIST) => {}
            result => result.during(format!("load module {}", path.display()))?,
        }
    }
    Ok(())
}
