//! ETags of the hub, which name content by its checksum, and the comparison with a file.

use std::fs::File;
use std::io::{self, Read, Seek};

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// The longest ETag that is used as the name of a blob.
const LONGEST_NAME: usize = 128;

/// A checksum of a whole file, as the hub states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Digest {
    /// Of large files.
    Sha256(String),
    /// Of small files: Git's hash of a blob, which is the SHA-1 of a header and the content. Mirrors state the SHA-1 of
    /// the content alone.
    Sha1(String),
}

impl Digest {
    /// The checksum that an ETag is, by its length; `None` when it is none.
    pub(super) fn of_etag(etag: &str) -> Option<Self> {
        if !etag.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        match etag.len() {
            64 => Some(Self::Sha256(etag.to_ascii_lowercase())),
            40 => Some(Self::Sha1(etag.to_ascii_lowercase())),
            _ => None,
        }
    }

    /// Compares with the content of `file`, from its beginning. `Err` is the checksum of the content. `check` is called
    /// between its parts and may stop it.
    pub(super) fn compare(
        &self,
        file: &mut File,
        check: &mut dyn FnMut() -> Result<()>,
        failed: &dyn Fn(&io::Error) -> Error,
    ) -> Result<std::result::Result<(), String>> {
        let length = file.metadata().map_err(|e| failed(&e))?.len();
        file.rewind().map_err(|e| failed(&e))?;
        let (mut sha256, mut blob, mut plain) = (Sha256::new(), Sha1::new(), Sha1::new());
        blob.update(format!("blob {length}\0"));
        let mut buffer = vec![0; 256 << 10];
        loop {
            check()?;
            let count = file.read(&mut buffer).map_err(|e| failed(&e))?;
            if count == 0 {
                break;
            }
            match self {
                Self::Sha256(_) => sha256.update(&buffer[..count]),
                Self::Sha1(_) => {
                    blob.update(&buffer[..count]);
                    plain.update(&buffer[..count]);
                }
            }
        }
        Ok(match self {
            Self::Sha256(stated) => agree(stated, &[format!("{:x}", sha256.finalize())]),
            Self::Sha1(stated) => {
                agree(stated, &[format!("{:x}", blob.finalize()), format!("{:x}", plain.finalize())])
            }
        })
    }

    /// The name of the algorithm.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Sha1(_) => "SHA-1",
        }
    }

    /// The checksum that the hub states.
    pub(super) fn stated(&self) -> &str {
        let (Self::Sha256(stated) | Self::Sha1(stated)) = self;
        stated
    }
}

fn agree(stated: &str, found: &[String]) -> std::result::Result<(), String> {
    if found.iter().any(|found| found == stated) { Ok(()) } else { Err(found[0].clone()) }
}

/// An ETag without quotes and `W/`; `None` when nothing is left.
pub(super) fn bare_etag(etag: &str) -> Option<&str> {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    (!etag.is_empty()).then_some(etag)
}

/// The file that holds the content of an ETag: named by the ETag itself, as `huggingface_hub` does, or by a checksum of
/// it where the ETag is no plain name, or one that our own files have.
pub(super) fn blob_name(etag: &str) -> String {
    let reserved = |end: &str| etag.to_ascii_lowercase().ends_with(end);
    let plain = etag.len() <= LONGEST_NAME
        && !etag.starts_with('.')
        && etag.chars().all(|c| c.is_ascii_graphic() && !r#"/\<>"|?*"#.contains(c))
        && !(cfg!(windows) && etag.contains(':'))
        && ![".incomplete", ".lock", ".tmp"].into_iter().any(reserved);
    if plain { etag.to_owned() } else { format!("etag-{:x}", Sha256::digest(etag)) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compare(digest: &Digest, content: &[u8]) -> std::result::Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        digest.compare(&mut file, &mut || Ok(()), &|e| Error::internal("", e)).unwrap()
    }

    #[test]
    fn checksums_of_known_content() {
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        // `printf abc | git hash-object --stdin`, and `sha1sum`.
        let (blob, plain) =
            ("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f", "a9993e364706816aba3e25717850c26c9cd0d89d");
        for stated in [sha256, blob, plain, &blob.to_uppercase()] {
            let digest = Digest::of_etag(stated).unwrap();
            assert_eq!(compare(&digest, b"abc"), Ok(()), "{stated}");
            let found = compare(&digest, b"abd").unwrap_err();
            assert_eq!(found.len(), stated.len());
            assert_ne!(found, digest.stated());
        }
    }

    #[test]
    fn other_etags_are_no_checksums() {
        for etag in ["", "abc", "d41d8cd98f00b204e9800998ecf8427e-5", &"g".repeat(64), &"a".repeat(63)] {
            assert_eq!(Digest::of_etag(etag), None, "{etag}");
        }
    }

    #[test]
    fn etags_lose_quotes_and_weakness() {
        assert_eq!(bare_etag("\"abc-1\""), Some("abc-1"));
        assert_eq!(bare_etag(" W/\"Wabc\" "), Some("Wabc"));
        assert_eq!(bare_etag("\"\""), None);
        assert_eq!(bare_etag(""), None);
    }

    #[test]
    fn every_etag_gives_a_name_inside_the_folder() {
        for plain in ["abc-1", "0x8DC.1", "a.b", "a=b+c", "v1,2"] {
            assert_eq!(blob_name(plain), plain);
        }
        let long = "a".repeat(400);
        let odd =
            ["../x", "a/b", "a\\b", "..", ".", ".x", "a.lock", "a.incomplete", "a.TMP", "a b", "ü", &long];
        let names: Vec<_> = odd.iter().map(|etag| blob_name(etag)).collect();
        assert!(names.iter().all(|name| name.starts_with("etag-") && name.len() == 69), "{names:?}");
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), odd.len());
    }
}
