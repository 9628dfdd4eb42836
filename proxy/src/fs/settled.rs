//! virtiofsd's file system, and how long the guest may take for granted what it was told.
//!
//! Where nobody changes the tree behind its back, the guest may keep what a symbolic link says: its text can't be changed, only the link can be replaced, and names are kept
//! as long. And close(2) asks nothing of the host: the guest has written back by then, so that an error of a write is told; what a
//! network file system would say to close(2) alone is not.
//! Where others do, it asks for the size of a file that is a volume by itself whenever it uses it.
//!
//! The names in a share's root are those of what is attached, and it keeps none of them: so it lets go of what it no longer uses, and with
//! that goes what keeps the host's tree busy here; and what is attached anew under an old name is not taken for the old. So it asks for them
//! whenever it uses them, and would unmount what is attached upon an error: these names are the host's, and are told even where there is
//! no room for more.
//!
//! And names are names: virtiofsd hands them to the host's kernel as they come, which takes `../x` for a path. No kernel sends such a
//! one; `.` and `..` it would look up for NFS, which it may not serve (FUSE_EXPORT_SUPPORT is not offered).
//!
//! What a guest holds takes descriptors, which all shares draw on, and the streams too: what else would take one more is refused with ENFILE
//! while there is no room for it ([`Pressure::has_room`]).

use std::{
    ffi::CStr,
    fs::File,
    io,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use virtiofsd::{
    filesystem::{
        Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
        OpenOptions, SerializableFileSystem, SetattrValid, SetxattrFlags, ZeroCopyReader,
        ZeroCopyWriter,
    },
    fuse,
    passthrough::PassthroughFs,
};

use super::{pressure::Pressure, singles::Singles};

/// What the guest may take for granted of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// Only the guest changes it.
    Guests,
    /// Anybody may.
    Anybodys,
}

/// virtiofsd's file system, and what may be promised of it beyond virtiofsd's own promises.
pub struct Settled {
    fs: PassthroughFs,
    changes: Changes,
    pressure: Pressure,
    singles: Singles,
}

impl Settled {
    /// What `fs` serves is changed by `changes`; its descriptors are among those of `pressure`.
    pub fn new(fs: PassthroughFs, changes: Changes, pressure: Pressure) -> Self {
        Self { fs, changes, pressure, singles: Singles::default() }
    }

    fn must_have_room(&self) -> io::Result<()> {
        if self.pressure.has_room() { Ok(()) } else { Err(rustix::io::Errno::NFILE.into()) }
    }

    /// For how long the guest may keep what it is told of an inode, which is `usually` for others.
    fn kept(&self, inode: u64, usually: Duration) -> Duration {
        if self.changes == Changes::Anybodys && self.singles.has(inode) {
            return Duration::ZERO;
        }
        usually
    }
}

/// Hands calls on as they are.
macro_rules! hand_on {
    {
        $(fn $name:ident$(<$gen:ident: $bound:path>)?(
            &self $(, $arg:ident: $type:ty)* $(,)?
        ) $(-> $answer:ty)?;)*
    } => {
        $(fn $name$(<$gen: $bound>)?(&self $(, $arg: $type)*) $(-> $answer)? {
            self.fs.$name($($arg),*)
        })*
    }
}

/// Hands calls on as they are, if these of their arguments are names, and after this check.
macro_rules! hand_on_if {
    {
        $([$($word:ident),* $(; $check:ident)?] fn $name:ident(
            &self $(, $arg:ident: $type:ty)* $(,)?
        ) -> $answer:ty;)*
    } => {
        $(fn $name(&self $(, $arg: $type)*) -> $answer {
            $(must_be_name($word)?;)*
            $(self.$check()?;)?
            self.fs.$name($($arg),*)
        })*
    }
}

/// Refuses what names nothing in a directory.
fn must_be_name(name: &CStr) -> io::Result<()> {
    let name = name.to_bytes();
    if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
        return Err(rustix::io::Errno::INVAL.into());
    }
    Ok(())
}

impl FileSystem for Settled {
    type Inode = <PassthroughFs as FileSystem>::Inode;
    type Handle = <PassthroughFs as FileSystem>::Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        let more = match self.changes {
            Changes::Guests => FsOptions::CACHE_SYMLINKS,
            Changes::Anybodys => FsOptions::empty(),
        };
        Ok(self.fs.init(capable)? | more)
    }

    fn flush(
        &self,
        ctx: Context,
        inode: Self::Inode,
        handle: Self::Handle,
        lock_owner: u64,
    ) -> io::Result<()> {
        match self.changes {
            // Upon this the guest does not ask again.
            Changes::Guests => Err(rustix::io::Errno::NOSYS.into()),
            Changes::Anybodys => self.fs.flush(ctx, inode, handle, lock_owner),
        }
    }

    fn lookup(&self, ctx: Context, parent: Self::Inode, name: &CStr) -> io::Result<Entry> {
        must_be_name(name)?;
        if parent != fuse::ROOT_ID {
            self.must_have_room()?;
        }
        let mut entry = self.fs.lookup(ctx, parent, name)?;
        if parent == fuse::ROOT_ID {
            entry.entry_timeout = Duration::ZERO;
        }
        if self.changes == Changes::Anybodys && self.singles.told(parent, name, &entry) {
            entry.attr_timeout = Duration::ZERO;
        }
        Ok(entry)
    }

    fn forget(&self, ctx: Context, inode: Self::Inode, count: u64) {
        self.singles.forgotten(inode);
        self.fs.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: Context, requests: Vec<(Self::Inode, u64)>) {
        for (inode, _) in &requests {
            self.singles.forgotten(*inode);
        }
        self.fs.batch_forget(ctx, requests);
    }

    fn getattr(
        &self,
        ctx: Context,
        inode: Self::Inode,
        handle: Option<Self::Handle>,
    ) -> io::Result<(fuse::Attr, Duration)> {
        let (attr, usually) = self.fs.getattr(ctx, inode, handle)?;
        Ok((attr, self.kept(inode, usually)))
    }

    fn setattr(
        &self,
        ctx: Context,
        inode: Self::Inode,
        attr: fuse::SetattrIn,
        handle: Option<Self::Handle>,
        valid: SetattrValid,
    ) -> io::Result<(fuse::Attr, Duration)> {
        let (attr, usually) = self.fs.setattr(ctx, inode, attr, handle, valid)?;
        Ok((attr, self.kept(inode, usually)))
    }

    hand_on_if! {
        [name; must_have_room] fn symlink(
            &self,
            ctx: Context,
            linkname: &CStr,
            parent: Self::Inode,
            name: &CStr,
            extensions: Extensions,
        ) -> io::Result<Entry>;
        [name; must_have_room] fn mknod(
            &self,
            ctx: Context,
            inode: Self::Inode,
            name: &CStr,
            mode: u32,
            rdev: u32,
            umask: u32,
            extensions: Extensions,
        ) -> io::Result<Entry>;
        [name; must_have_room] fn mkdir(
            &self,
            ctx: Context,
            parent: Self::Inode,
            name: &CStr,
            mode: u32,
            umask: u32,
            extensions: Extensions,
        ) -> io::Result<Entry>;
        [name] fn unlink(&self, ctx: Context, parent: Self::Inode, name: &CStr) -> io::Result<()>;
        [name] fn rmdir(&self, ctx: Context, parent: Self::Inode, name: &CStr) -> io::Result<()>;
        [oldname, newname] fn rename(
            &self,
            ctx: Context,
            olddir: Self::Inode,
            oldname: &CStr,
            newdir: Self::Inode,
            newname: &CStr,
            flags: u32,
        ) -> io::Result<()>;
        [newname; must_have_room] fn link(
            &self, ctx: Context, inode: Self::Inode, newparent: Self::Inode, newname: &CStr
        ) -> io::Result<Entry>;
        [name; must_have_room] fn create(
            &self,
            ctx: Context,
            parent: Self::Inode,
            name: &CStr,
            mode: u32,
            kill_priv: bool,
            flags: u32,
            umask: u32,
            extensions: Extensions,
        ) -> io::Result<(Entry, Option<Self::Handle>, OpenOptions)>;
        [; must_have_room] fn open(
            &self, ctx: Context, inode: Self::Inode, kill_priv: bool, flags: u32
        ) -> io::Result<(Option<Self::Handle>, OpenOptions)>;
        [; must_have_room] fn opendir(
            &self, ctx: Context, inode: Self::Inode, flags: u32
        ) -> io::Result<(Option<Self::Handle>, OpenOptions)>;
    }

    hand_on! {
        fn destroy(&self);
        fn readlink(&self, ctx: Context, inode: Self::Inode) -> io::Result<Vec<u8>>;
        fn read<W: ZeroCopyWriter>(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            w: W,
            size: u32,
            offset: u64,
            lock_owner: Option<u64>,
            flags: u32,
        ) -> io::Result<usize>;
        fn write<R: ZeroCopyReader>(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            r: R,
            size: u32,
            offset: u64,
            lock_owner: Option<u64>,
            delayed_write: bool,
            kill_priv: bool,
            flags: u32,
        ) -> io::Result<usize>;
        fn fsync(
            &self, ctx: Context, inode: Self::Inode, datasync: bool, handle: Self::Handle
        ) -> io::Result<()>;
        fn fallocate(
            &self,
            ctx: Context,
            inode: Self::Inode,
            handle: Self::Handle,
            mode: u32,
            offset: u64,
            length: u64,
        ) -> io::Result<()>;
        fn release(
            &self,
            ctx: Context,
            inode: Self::Inode,
            flags: u32,
            handle: Self::Handle,
            flush: bool,
            flock_release: bool,
            lock_owner: Option<u64>,
        ) -> io::Result<()>;
        fn statfs(&self, ctx: Context, inode: Self::Inode) -> io::Result<libc::statvfs64>;
        fn setxattr(
            &self,
            ctx: Context,
            inode: Self::Inode,
            name: &CStr,
            value: &[u8],
            flags: u32,
            extra_flags: SetxattrFlags,
        ) -> io::Result<()>;
        fn getxattr(
            &self, ctx: Context, inode: Self::Inode, name: &CStr, size: u32
        ) -> io::Result<GetxattrReply>;
        fn listxattr(
            &self, ctx: Context, inode: Self::Inode, size: u32
        ) -> io::Result<ListxattrReply>;
        fn removexattr(&self, ctx: Context, inode: Self::Inode, name: &CStr) -> io::Result<()>;
        fn readdir(
            &self, ctx: Context, inode: Self::Inode, handle: Self::Handle, size: u32, offset: u64
        ) -> io::Result<Self::DirIter>;
        fn fsyncdir(
            &self, ctx: Context, inode: Self::Inode, datasync: bool, handle: Self::Handle
        ) -> io::Result<()>;
        fn releasedir(
            &self, ctx: Context, inode: Self::Inode, flags: u32, handle: Self::Handle
        ) -> io::Result<()>;
        fn access(&self, ctx: Context, inode: Self::Inode, mask: u32) -> io::Result<()>;
        fn lseek(
            &self, ctx: Context, inode: Self::Inode, handle: Self::Handle, offset: u64, whence: u32
        ) -> io::Result<u64>;
        fn copyfilerange(
            &self,
            ctx: Context,
            inode_in: Self::Inode,
            handle_in: Self::Handle,
            offset_in: u64,
            inode_out: Self::Inode,
            handle_out: Self::Handle,
            offset_out: u64,
            len: u64,
            flags: u64,
        ) -> io::Result<usize>;
        fn syncfs(&self, ctx: Context, inode: Self::Inode) -> io::Result<()>;
    }
}

impl SerializableFileSystem for Settled {
    hand_on! {
        fn prepare_serialization(&self, cancel: Arc<AtomicBool>);
        fn serialize(&self, state_pipe: File) -> io::Result<()>;
        fn deserialize_and_apply(&self, state_pipe: File) -> io::Result<()>;
    }
}

#[cfg(test)]
mod tests;
