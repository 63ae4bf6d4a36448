//! A disk that loses its power.

use std::{
    io::ErrorKind,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::{Scratch, Volume};

/// Unmounts the disk once its standard input ends, whatever still uses it.
const CLEANER: &str = r#"cat; umount -l -- "$0""#;
/// The request `FS_IOC_SHUTDOWN` without a flush of the journal. Rust has no safe function for it.
const SHUT_DOWN: &str =
    r#"open(my $f, "<", $ARGV[0]) or die $!; my $how = pack("L", 2); ioctl($f, 0x8004587d, $how) or die $!"#;

/// An ext4 file system whose power can be cut: what was not synced before is lost. Unmounted on drop, like a [`Volume`].
///
/// The file system is on an image in memory, so syncs are fast. The image keeps every write that the file system sends
/// to it, in order: a missing fsync is found, a missing flush of the disk's own cache is not.
#[derive(Debug)]
pub(crate) struct Disk {
    cleaner: Child,
    mounted: Scratch,
    images: Volume,
    /// How often the power was cut: the name of the present image.
    cuts: u32,
}

impl Disk {
    /// Makes one of so many MiB. An error says why that is not possible here: it needs root and loop devices.
    pub(crate) fn mount(mebibytes: u64) -> Result<Self, String> {
        let images = Volume::mount(4 * mebibytes)?;
        let file = images.path().join("0");
        let size = mebibytes * 1024 * 1024;
        std::fs::File::create(&file)
            .and_then(|created| created.set_len(size))
            .map_err(|error| format!("cannot create {}: {error}", file.display()))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&file))?;
        run(Command::new("perl").args(["-e", "1"]))?;
        let mounted = Scratch::new();
        mount(&file, &mounted)?;
        let cleaner = Command::new("sh")
            .args(["-c", CLEANER])
            .arg(mounted.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // as for a `Scratch`
            .spawn()
            .expect("cannot start sh");
        Ok(Self {
            cleaner,
            mounted,
            images,
            cuts: 0,
        })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// Cuts the power. From now on nothing is written, and every access fails.
    #[track_caller]
    pub(crate) fn cut_power(&self) {
        let cut = run(Command::new("perl").args(["-e", SHUT_DOWN]).arg(self.path()));
        cut.expect("cannot cut the power");
    }

    /// Mounts it again, after the end of all processes that had files open on it.
    #[track_caller]
    pub(crate) fn restore(&mut self) {
        let unmounted = run(Command::new("umount").arg("-l").arg(self.path()));
        unmounted.expect("cannot unmount the disk");
        // Whoever has made a mount namespace meanwhile keeps the dead file system mounted, and with it the image.
        let before = self.images.path().join(self.cuts.to_string());
        self.cuts += 1;
        let after = self.images.path().join(self.cuts.to_string());
        run(Command::new("cp").arg("--sparse=always").args([&before, &after]))
            .expect("cannot copy the image");
        std::fs::remove_file(before).expect("cannot remove the image");
        mount(&after, &self.mounted).expect("cannot mount the disk again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        let _ = self.cleaner.wait();
    }
}

/// With `discard`, the image gives freed blocks back.
fn mount(image: &Path, at: &Scratch) -> Result<(), String> {
    let mut mount = Command::new("mount");
    mount.args(["-o", "loop,discard"]);
    run(mount.arg(image).arg(at.path()))
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let done = command.output().map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("{program} is missing"),
        _ => format!("cannot start {program}: {error}"),
    })?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    ))
}
