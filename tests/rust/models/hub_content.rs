//! What a hub sends: checksums, chunked answers, ETags, and places that are links.

use super::*;

/// The SHA-256 of `weights()`.
const SHA256: &str = "10a9afe6c9b0e4f3d9d3b946278d3f80221cf9b9207d7a1478c7c62d94150808";
/// Git's hash of `{"model_type":"bert"}`.
const GIT: &str = "3967ff7fee9d40eb77abadd6a292230496ca9f24";

#[test]
fn content_is_compared_with_its_checksum() {
    let content = weights();
    for (file, etag) in [("model.safetensors", SHA256), ("config.json", GIT)] {
        let hub = Hub::new(&model(&content));
        hub.name("model.safetensors", SHA256);
        hub.name("config.json", GIT);
        hub.fail(file, [Fault::Corrupt]);
        let setup = Setup::new(&hub);
        let error = download_error(setup.resolve());
        assert!(error.contains(file) && error.contains(&format!("the hub states {etag}")), "{error}");
        let blobs = setup.repo().join("blobs");
        assert!(!blobs.join(etag).exists());
        assert!(!blobs.join(format!("{etag}.incomplete")).exists(), "the wrong content was kept");
        assert!(!setup.repo().join("refs/main").exists());
        setup.resolve().unwrap();
        assert_eq!(fs::read(blobs.join(SHA256)).unwrap(), content);
    }
}

#[test]
fn a_wrong_part_left_behind_starts_over() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.name("model.safetensors", SHA256);
    let setup = Setup::new(&hub);
    let blobs = setup.repo().join("blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join(format!("{SHA256}.incomplete")), vec![7; 1000]).unwrap();
    setup.resolve().unwrap();
    assert_eq!(fs::read(blobs.join(SHA256)).unwrap(), content);
    let asked: Vec<_> = hub.gets("cdn/model.safetensors").into_iter().map(|r| r.range).collect();
    assert_eq!(asked, [Some("bytes=1000-".into()), None]);
}

#[test]
fn answers_in_chunks() {
    let content = weights();
    // The range's total is the length.
    let hub = Hub::new(&model(&content));
    hub.hide_sizes();
    hub.fail("model.safetensors", [Fault::Cut(1000), Fault::Chunked]);
    let setup = Setup::new(&hub);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    // No length is stated: a checksum is enough, nothing else is.
    for named in [false, true] {
        let hub = Hub::new(&model(&content));
        hub.hide_sizes();
        if named {
            hub.name("model.safetensors", SHA256);
        }
        hub.fail("model.safetensors", [Fault::Chunked]);
        let setup = Setup::new(&hub);
        let found = setup.resolve();
        if named {
            assert_eq!(fs::read(&found.unwrap().weights.paths()[0]).unwrap(), content);
        } else {
            assert!(download_error(found).contains("states no length"));
        }
    }
}

#[test]
fn a_server_may_send_less_than_the_range() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.fail("model.safetensors", [Fault::Cut(1000), Fault::PartOfRange(200_000)]);
    let setup = Setup::new(&hub);
    setup.resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    let last = hub.gets("cdn/model.safetensors").pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=201000-"));
}

#[test]
fn a_server_that_trickles_is_left() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    hub.fail("model.safetensors", [Fault::Trickle(Duration::from_millis(200))]);
    let mut setup = Setup::new(&hub);
    setup.set("HF_HUB_DOWNLOAD_TIMEOUT", "1").resolve().unwrap();
    assert_eq!(fs::read(setup.blob("model.safetensors")).unwrap(), content);
    assert_eq!(hub.gets("cdn/model.safetensors").len(), 2);
}

#[test]
fn whoever_waits_for_another_download_can_stop() {
    let content = weights();
    let hub = Hub::new(&model(&content));
    let setup = Setup::new(&hub);
    let locks = setup.home.path().join("hub/.locks/models--org--model");
    fs::create_dir_all(&locks).unwrap();
    let held = fs::File::create(locks.join(format!("{}.lock", etag("config.json")))).unwrap();
    held.lock().unwrap();
    let mut asked = 0;
    let stopped = setup.resolve_with(&mut |progress| {
        asked += usize::from(progress.file == "config.json");
        if asked > 1 { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert_eq!(stopped.unwrap_err(), Error::Cancelled);
    assert!(hub.gets("resolve/config.json").is_empty());
    drop(held);
    setup.resolve().unwrap();
}

#[test]
fn etags_of_every_kind() {
    let content = weights();
    for (given, name) in [("0x8D:1.a", Some("0x8D:1.a")), ("../../../evil", None), ("a/b", None)] {
        let hub = Hub::new(&model(&content));
        hub.name("config.json", given);
        let setup = Setup::new(&hub);
        let files = setup.resolve().unwrap();
        let blobs = setup.repo().join("blobs");
        let target = fs::canonicalize(files.root.join("config.json")).unwrap();
        assert_eq!(target.parent().unwrap(), fs::canonicalize(&blobs).unwrap());
        if let Some(name) = name {
            assert_eq!(target.file_name().unwrap(), name);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_link_in_the_place_of_a_download_is_not_followed() {
    use std::os::unix::fs::symlink;
    let content = weights();
    let hub = Hub::new(&model(&content));
    let setup = Setup::new(&hub);
    let victim = setup.home.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    let locks = setup.home.path().join("hub/.locks/models--org--model");
    let lock = locks.join(format!("{}.lock", etag("config.json")));
    fs::create_dir_all(setup.repo().join("blobs")).unwrap();
    fs::create_dir_all(&locks).unwrap();
    for place in [setup.part("config.json"), lock] {
        for hard in [false, true] {
            // An attempt before this one may have left its lock file.
            let _ = fs::remove_file(&place);
            if hard { fs::hard_link(&victim, &place) } else { symlink(&victim, &place) }.unwrap();
            match setup.resolve().unwrap_err() {
                Error::InvalidFile { path, reason } => {
                    assert_eq!(path, place);
                    assert!(reason.contains("remove it"), "{reason}");
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(fs::read(&victim).unwrap(), b"mine");
            fs::remove_file(&place).unwrap();
        }
    }
    setup.resolve().unwrap();
}
