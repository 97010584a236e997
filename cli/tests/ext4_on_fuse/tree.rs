//! A real tree of files: a part of `/usr/share`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// What of the machine's files is taken, relative to [`SOURCE`].
pub(crate) struct Tree {
    entries: Vec<PathBuf>,
    /// Bytes of all files.
    pub(crate) bytes: u64,
}

const SOURCE: &str = "/usr/share";

impl Tree {
    /// Folders, files and symbolic links up to so many bytes and entries.
    pub(crate) fn of_this_machine(bytes: u64, entries: usize) -> Self {
        let mut tree = Self { entries: Vec::new(), bytes: 0 };
        tree.add(Path::new(""), bytes, entries);
        assert!(tree.entries.len() > 100, "{SOURCE} is too small for this test");
        tree
    }

    fn add(&mut self, folder: &Path, bytes: u64, entries: usize) {
        let mut names: Vec<_> = fs::read_dir(Path::new(SOURCE).join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        for name in names {
            let path = folder.join(name);
            let metadata = fs::symlink_metadata(Path::new(SOURCE).join(&path)).unwrap();
            let size = if metadata.is_file() { metadata.len() } else { 0 };
            if self.bytes + size > bytes || self.entries.len() >= entries {
                continue;
            }
            self.bytes += size;
            self.entries.push(path.clone());
            if metadata.is_dir() {
                self.add(&path, bytes, entries);
            }
        }
    }

    pub(crate) fn copy_to(&self, target: &Path) {
        for path in &self.entries {
            let (from, to) = (Path::new(SOURCE).join(path), target.join(path));
            let kind = fs::symlink_metadata(&from).unwrap().file_type();
            if kind.is_dir() {
                fs::create_dir(&to).unwrap();
            } else if kind.is_symlink() {
                symlink(fs::read_link(&from).unwrap(), &to).unwrap();
            } else {
                fs::copy(&from, &to).unwrap();
            }
        }
    }

    /// Compares every byte, and finds what is missing or too much.
    pub(crate) fn assert_is_at(&self, target: &Path) {
        for path in &self.entries {
            let (from, to) = (Path::new(SOURCE).join(path), target.join(path));
            let (expected, found) =
                (fs::symlink_metadata(&from).unwrap(), fs::symlink_metadata(&to).unwrap());
            assert_eq!(expected.file_type(), found.file_type(), "{}", path.display());
            if expected.is_symlink() {
                assert_eq!(fs::read_link(&from).unwrap(), fs::read_link(&to).unwrap(), "{}", path.display());
            } else if expected.is_file() {
                assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap(), "{} differs", path.display());
            }
        }
        assert_eq!(count(target), self.entries.len(), "more than was copied");
    }
}

fn count(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries.map(|entry| 1 + if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 0 }).sum()
}
