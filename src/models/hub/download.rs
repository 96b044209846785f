//! Downloads into the cache, one file at a time.
//!
//! A file is renamed into `blobs/` after its length and its checksum were compared with those that
//! the hub states. Until then it is `ETAG.incomplete`, which the next attempt, or the next process, continues with a
//! `Range` request. Writers of one blob take turns with a lock file, the one that `huggingface_hub` uses.
//!
//! The `hf-hub` crate (0.5) is not used for downloads. Against a failing server, it takes a short body
//! without a length for a whole file; appends the whole file to the part when the server ignores `Range`, and when
//! an attempt to resume fails before its first byte; answers 416 on every call once a complete part was not renamed; has no
//! time-outs; sends the access token to the content network that the hub redirects to; and a second process that
//! wants the same file fails after five seconds.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::{create_folder_of, link, open_own, with_suffix};
use super::client::{HubClient, HubFault, Stated, content_range, escape, failed, header};
use super::progress::{OnProgress, Progress};
use crate::{Error, Result};

/// An attempt that adds this many bytes resets the count of failures: the size of the file bounds the number of attempts.
const FRUITFUL_BYTES: u64 = 64 << 10;
/// The longest file whose length the hub does not state, where a checksum shows that it is complete.
const UNSTATED_BYTES: u64 = 64 << 20;
/// The time between two attempts to take a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// The time between two log records about that wait.
const LOCK_NOTICE: Duration = Duration::from_secs(30);

/// The files of one model at one commit, in the cache.
pub(crate) struct Blobs<'a> {
    /// The connection.
    pub(crate) client: &'a HubClient,
    /// `models--organization--name`
    pub(crate) repo: &'a Path,
    /// Folder of the lock files.
    pub(crate) locks: &'a Path,
    /// `organization/name`
    pub(crate) id: &'a str,
    /// The commit.
    pub(crate) commit: &'a str,
}

impl Blobs<'_> {
    /// The address of a file.
    pub(super) fn url(&self, file: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.client.endpoint(), self.id, self.commit, escape(file))
    }

    /// Downloads `file` and links it into its snapshot.
    pub(crate) fn download(&self, file: &str, progress: &mut OnProgress<'_>) -> Result<()> {
        let pointer = self.repo.join("snapshots").join(self.commit).join(file);
        if pointer.is_file() {
            return Ok(());
        }
        let url = self.url(file);
        let stated = self.client.head(&url, self.id)?;
        let blob = self.repo.join("blobs").join(&stated.name);
        if !is_whole(&blob, &stated) {
            create_folder_of(&blob)?;
            let lock = self.locks.join(format!("{}.lock", stated.name));
            let _lock = lock_file(&lock, &mut || progress(&Progress { file, done: 0, total: stated.size }))?;
            // The other process may have downloaded it during the wait.
            if !is_whole(&blob, &stated) {
                log::info!("downloading {url}");
                self.fetch(&url, file, &blob, &stated, progress)?;
            }
        }
        link(&blob, &pointer)
    }

    fn fetch(
        &self,
        url: &str,
        file: &str,
        blob: &Path,
        stated: &Stated,
        progress: &mut OnProgress<'_>,
    ) -> Result<()> {
        let part = with_suffix(blob, ".incomplete");
        let out = open_own(&part, OpenOptions::new().create(true).read(true).write(true).truncate(false))?;
        let checked = stated.digest.is_some();
        let mut transfer =
            Transfer { client: self.client, id: self.id, url, file, part, out, size: stated.size, checked };
        let mut resumed = transfer.length()? > 0;
        loop {
            transfer.run(progress)?;
            let Some(reason) = transfer.mismatch(stated, progress)? else { break };
            transfer.restart()?;
            if resumed {
                // The bytes of an earlier attempt may be the damaged ones.
                resumed = false;
                log::warn!("{url}: {reason}; starting over");
                continue;
            }
            fs::remove_file(&transfer.part).map_err(|e| Error::io(&transfer.part, "remove", &e))?;
            let remedy = "it was removed; try again, and check the disk, proxies and HF_ENDPOINT";
            return Err(failed(url, format!("{reason}; {remedy}")));
        }
        // Synced before the rename, so that after a power cut the name never refers to a partial file.
        transfer.out.sync_all().map_err(|e| transfer.written(&e))?;
        let part = transfer.part;
        fs::rename(&part, blob).map_err(|e| Error::io(blob, "write", &e))
    }
}

/// The download of one file into its `.incomplete` part.
struct Transfer<'a> {
    client: &'a HubClient,
    id: &'a str,
    url: &'a str,
    file: &'a str,
    part: PathBuf,
    out: File,
    size: Option<u64>,
    /// Whether a checksum is known. Without a length, it shows whether the file is complete.
    checked: bool,
}

impl Transfer<'_> {
    /// Repeats the request until the whole file is on disk, or too many attempts in a row add nothing.
    fn run(&mut self, progress: &mut OnProgress<'_>) -> Result<()> {
        let mut fruitless = 0;
        loop {
            let start = self.length()?;
            if self.size == Some(start) {
                break;
            }
            if let Err(fault) = self.attempt(start, progress) {
                // A file that started over has less than before.
                if self.length()? >= start + FRUITFUL_BYTES {
                    fruitless = 0;
                }
                fault.pause(self.url, &mut fruitless)?;
            } else if self.size.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// What is wrong with the content, if its checksum is not the one stated.
    fn mismatch(&mut self, stated: &Stated, progress: &mut OnProgress<'_>) -> Result<Option<String>> {
        let Some(digest) = &stated.digest else { return Ok(None) };
        let done = self.length()?;
        let report = Progress { file: self.file, done, total: self.size };
        let part = &self.part;
        let failed = |e: &io::Error| Error::io(part, "read", e);
        let found = digest.compare(&mut self.out, &mut || progress(&report), &failed)?;
        Ok(found.err().map(|found| {
            format!("the content's {} is {found}, the hub states {}", digest.name(), digest.stated())
        }))
    }

    /// Sends one request, from byte `start` on. Ok when the body has the length that its headers state.
    fn attempt(&mut self, start: u64, progress: &mut OnProgress<'_>) -> Result<(), HubFault> {
        if self.size.is_some_and(|size| start > size) {
            self.restart()?;
            return Err(HubFault::Transient("the unfinished file was longer than the whole".into()));
        }
        let mut response = self.client.get(self.url, start)?;
        let mut done = start;
        let range = content_range(response.headers());
        let mut total = None;
        match response.status().as_u16() {
            206 if start > 0 && range.is_some_and(|(first, _)| first == start) => {
                total = range.and_then(|(_, total)| total);
            }
            206 | 416 => {
                self.restart()?;
                return Err(HubFault::Transient("the server answered another range than asked".into()));
            }
            200 => {
                self.restart()?;
                done = 0;
            }
            _ => {
                self.client.refuse(self.url, self.id, &response)?;
                return Err(HubFault::Permanent(failed(
                    self.url,
                    format!("the server answered {}", response.status()),
                )));
            }
        }
        let announced =
            header(response.headers(), "content-length").and_then(|length| length.parse::<u64>().ok());
        let chunked = header(response.headers(), "transfer-encoding").is_some_and(|coding| {
            coding.rsplit(',').next().is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"))
        });
        // The server may send less than the requested range, so the size is the total that it states.
        let size =
            self.agree(total.or_else(|| announced.and_then(|length| done.checked_add(length))), chunked)?;
        let mut pace = self.client.pace();
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            progress(&Progress { file: self.file, done, total: size })?;
            let count = body.read(&mut buffer).map_err(|e| HubFault::Transient(e.to_string()))?;
            if count == 0 {
                break;
            }
            done += count as u64;
            if done > size.unwrap_or(UNSTATED_BYTES) {
                self.restart()?;
                return Err(HubFault::Permanent(failed(
                    self.url,
                    "the server sends more than it stated; check HF_ENDPOINT",
                )));
            }
            self.out.write_all(&buffer[..count]).map_err(|e| self.written(&e))?;
            pace.note(done - start)?;
        }
        match size {
            Some(size) if done < size => {
                Err(HubFault::Transient(format!("the connection ended after {done} of {size} bytes")))
            }
            _ => Ok(()),
        }
    }

    /// The length of the whole file, on which HEAD and GET must agree. `None` when neither states it; then the body is
    /// chunked, so its end is known, and a checksum shows whether the file is complete.
    fn agree(&mut self, announced: Option<u64>, chunked: bool) -> Result<Option<u64>, HubFault> {
        let size = match (announced, self.size) {
            (Some(sent), Some(stated)) if sent != stated => Err(format!(
                "the hub states {stated} bytes, the server sends {sent}; try later, or check HF_ENDPOINT"
            )),
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) if chunked && self.checked => return Ok(None),
            (None, None) => Err(
                "the server states no length: a cut connection could not be distinguished from a whole file"
                    .into(),
            ),
        };
        let size = size.map_err(|reason| HubFault::Permanent(failed(self.url, reason)))?;
        self.size = Some(size);
        Ok(Some(size))
    }

    fn length(&mut self) -> Result<u64> {
        self.out.seek(SeekFrom::End(0)).map_err(|e| self.written(&e))
    }

    fn restart(&mut self) -> Result<()> {
        self.out.set_len(0).and_then(|()| self.out.rewind()).map_err(|e| self.written(&e))
    }

    fn written(&self, error: &io::Error) -> Error {
        Error::io(&self.part, "write", error)
    }
}

fn is_whole(blob: &Path, stated: &Stated) -> bool {
    fs::metadata(blob).is_ok_and(|meta| meta.is_file() && stated.size.is_none_or(|size| size == meta.len()))
}

/// Waits for the lock of a blob. The system releases it when the file is closed, also when the process ends. `check` may
/// end the wait.
fn lock_file(path: &Path, check: &mut dyn FnMut() -> Result<()>) -> Result<File> {
    create_folder_of(path)?;
    let file = open_own(path, OpenOptions::new().create(true).append(true))?;
    let mut logged: Option<Instant> = None;
    // The system's locks have no wait with a time-out, so this loop polls.
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                log::warn!(
                    "{}: this file system has no locks; do not download one model twice at once",
                    path.display()
                );
                return Ok(file);
            }
            Err(TryLockError::Error(e)) => return Err(Error::io(path, "lock", &e)),
        }
        check()?;
        if logged.is_none_or(|at| at.elapsed() >= LOCK_NOTICE) {
            log::warn!("waiting for another download of the same file, which holds {}", path.display());
            logged = Some(Instant::now());
        }
        thread::sleep(LOCK_PAUSE);
    }
}
