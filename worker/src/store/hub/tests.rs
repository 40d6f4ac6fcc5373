//! The cache against a hub on this machine.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{
    testing::{COMMIT, FakeHub, Faults},
    *,
};

const PLACE: &str = "hf://timm/net";

fn weights() -> Vec<u8> {
    (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect()
}

fn hub() -> FakeHub {
    FakeHub::start(&[("timm/net/model.safetensors", weights()), ("timm/net/config.json", b"{}".to_vec())])
}

fn models(hub: &FakeHub, cache: &Path, token: Option<&str>) -> Models {
    let mut web = Web::new(&hub.endpoint, token.map(str::to_owned), false).unwrap();
    web.pause = Duration::from_millis(1);
    Models {
        web: Arc::new(web),
        cache: Cache::new(cache.join("hub")),
        bringing: Keyed::default(),
        digests: Arc::default(),
    }
}

/// What came of an errand, and the notices on its way.
async fn take(models: &Models, place: &str, look: bool) -> (Result<Found, Error>, Vec<String>) {
    let said: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = said.clone();
    let tell = move |told: Told<'_>| {
        if let Told::Notice(text) = told {
            heard.lock().unwrap().push(text.to_owned());
        }
    };
    let found = models.take(place, look, tell).await;
    let said = said.lock().unwrap().clone();
    (found, said)
}

fn here(found: Result<Found, Error>) -> Fetched {
    match found.unwrap() {
        Found::Here(fetched) => fetched,
        Found::Absent { .. } => panic!("nothing is here"),
    }
}

#[tokio::test]
async fn a_first_download_is_announced_and_a_second_use_asks_once_or_not_at_all() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let models = models(&hub, dir.path(), None);
    // A look says what it would take, and downloads nothing.
    let (found, _) = take(&models, PLACE, true).await;
    assert_eq!(found.unwrap(), Found::Absent { bytes: 300_002 });
    assert!(hub.asked().iter().all(|a| a.starts_with("HEAD")));

    let (found, said) = take(&models, PLACE, false).await;
    let first = here(found);
    assert_eq!(std::fs::read(&first.path).unwrap(), weights());
    assert_eq!(std::fs::read(first.path.with_file_name("config.json")).unwrap(), b"{}");
    assert_eq!(first.source.pinned, format!("hf://timm/net@{COMMIT}#model.safetensors"));
    let names: Vec<_> = first.source.files.iter().map(|f| (f.name.as_str(), f.bytes)).collect();
    assert_eq!(names, [("model.safetensors", 300_000), ("config.json", 2)]);
    assert_eq!(said.len(), 1);
    assert!(
        said[0].contains("downloads `hf://timm/net` from http://127.0.0.1") && said[0].contains("293.0 KiB"),
        "{said:?}"
    );
    assert!(hub.asked().iter().any(|a| a.starts_with("GET")));

    let (found, said) = take(&models, PLACE, false).await;
    assert_eq!((here(found), said.len()), (first.clone(), 0));
    assert_eq!(hub.asked(), ["HEAD /timm/net/resolve/main/model.safetensors"]);
    let (found, _) = take(&models, &first.source.pinned, false).await;
    assert_eq!(here(found).path, first.path);
    assert_eq!(hub.asked(), [""; 0], "a commit is what it was");

    // Without the hub, what a branch stood for last.
    hub.fail(Faults { away: true, ..Faults::default() });
    let (found, said) = take(&models, PLACE, false).await;
    assert_eq!(here(found).path, first.path);
    assert!(said[0].contains("is taken from the cache"), "{said:?}");
    // The same file is what Hugging Face's own libraries would find.
    assert!(dir.path().join(format!("hub/models--timm--net/snapshots/{COMMIT}/model.safetensors")).exists());
}

#[tokio::test]
async fn two_ranks_that_want_the_same_download_it_once() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    // One agent with two ranks, and a second agent of the same machine.
    let (one, other) = (models(&hub, dir.path(), None), models(&hub, dir.path(), None));
    let (a, b, c) = tokio::join!(take(&one, PLACE, false), take(&one, PLACE, false), take(&other, PLACE, false));
    let all = [a.0, b.0, c.0].map(here);
    assert!(all.iter().all(|f| *f == all[0]));
    let downloads = hub.asked().iter().filter(|a| a.contains("GET /elsewhere")).count();
    assert_eq!(downloads, 1);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    hub.fail(Faults { cut: Some(100_000), ..Faults::default() });
    let (found, _) = take(&models(&hub, dir.path(), None), PLACE, false).await;
    assert_eq!(std::fs::read(here(found).path).unwrap(), weights());
    let ranges: Vec<_> = hub.asked().into_iter().filter(|a| a.starts_with("GET /elsewhere")).collect();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[1].ends_with("bytes=100000-"), "{ranges:?}");

    // Also in another process, and where the hub begins anew.
    for whole_only in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        hub.fail(Faults { cut: Some(70_000), ..Faults::default() });
        let blobs = dir.path().join("hub/models--timm--net/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        let tag = sha2::Digest::finalize(<sha2::Sha256 as sha2::Digest>::new_with_prefix(weights()));
        let tag: String = tag.iter().map(|b| format!("{b:02x}")).collect();
        std::fs::write(blobs.join(format!("{tag}.part")), &weights()[..70_000]).unwrap();
        hub.fail(Faults { whole_only, ..Faults::default() });
        let (found, _) = take(&models(&hub, dir.path(), None), PLACE, false).await;
        assert_eq!(std::fs::read(here(found).path).unwrap(), weights());
        // Bytes that were left and are wrong do not stay.
        let dir = tempfile::tempdir().unwrap();
        let blobs = dir.path().join("hub/models--timm--net/blobs");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(format!("{tag}.part")), vec![9; 70_000]).unwrap();
        let (found, _) = take(&models(&hub, dir.path(), None), PLACE, false).await;
        assert_eq!(std::fs::read(here(found).path).unwrap(), weights());
    }
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_refused_and_leaves_nothing() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let models = models(&hub, dir.path(), None);
    for (faults, says) in [
        (Faults { damage: true, ..Faults::default() }, "other bytes than the hub had announced"),
        (Faults { lie: 20 << 30, ..Faults::default() }, "more than the limit"),
        (Faults { lie: -5, ..Faults::default() }, "and the hub had announced 299995"),
    ] {
        hub.fail(faults);
        let failure = take(&models, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
        assert!(
            failure.message.starts_with("`hf://timm/net` cannot be fetched: ") && failure.message.contains(says),
            "{failure}"
        );
    }
    // A file that is shorter than was said never arrives.
    hub.fail(Faults { lie: 5, ..Faults::default() });
    let failure = take(&models, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(failure.message.contains("ended early"), "{failure}");
    hub.fail(Faults::default());
    let first = here(take(&models, PLACE, false).await.0);
    // What was damaged since is fetched again.
    std::fs::write(&first.path, b"rubbish").unwrap();
    let (found, said) = take(&models, &first.source.pinned, false).await;
    assert_eq!(std::fs::read(here(found).path).unwrap(), weights());
    assert!(said[0].contains("is damaged; it is fetched again"), "{said:?}");
    // Also a small file, of the same size.
    let config = first.path.with_file_name("config.json");
    std::fs::write(&config, b"[]").unwrap();
    let (found, said) = take(&models, &first.source.pinned, false).await;
    assert_eq!(std::fs::read(here(found).path.with_file_name("config.json")).unwrap(), b"{}");
    assert!(said[0].contains("`config.json` in the cache is damaged"), "{said:?}");
}

#[tokio::test]
async fn what_the_hub_does_not_have_or_does_not_give_is_said_with_a_hint() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let stranger = models(&hub, dir.path(), None);
    for (place, says, hint) in [
        ("hf://timm/net#other.pth", "the repository has no `other.pth`", "hf://OWNER/REPO@REVISION#FILE"),
        ("hf://timm/net@v9", "the repository has no revision `v9`", "hf://OWNER/REPO@REVISION#FILE"),
    ] {
        let failure = take(&stranger, place, false).await.0.unwrap_err().to_failure(place);
        assert!(failure.message.contains(says) && failure.hint.contains(hint), "{failure}: {}", failure.hint);
    }
    let secret = "hf_aVerySecretToken";
    hub.fail(Faults { token: Some(secret.into()), ..Faults::default() });
    let failure = take(&stranger, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(failure.message.contains("wants a token") && failure.hint.contains("HF_TOKEN"), "{failure}");
    let wrong = models(&hub, dir.path(), Some("hf_wrong"));
    let failure = take(&wrong, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(!format!("{failure:?}").contains("hf_wrong"));
    let known = models(&hub, dir.path(), Some(secret));
    let (found, said) = take(&known, PLACE, false).await;
    here(found);
    assert!(!said.join(" ").contains(secret));

    let elsewhere = tempfile::tempdir().unwrap();
    hub.fail(Faults { away: true, ..Faults::default() });
    let failure = take(&models(&hub, elsewhere.path(), None), PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(failure.message.contains("cannot be reached") && failure.hint.contains("tlctl data push"), "{failure}");
    assert!(failure.class.retries() > 0, "it comes back");
    let web = Arc::new(Web::new(&hub.endpoint, None, true).unwrap());
    let offline =
        Models { web, cache: Cache::new(elsewhere.path().into()), bringing: Keyed::default(), digests: Arc::default() };
    hub.asked();
    let failure = take(&offline, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(failure.message.contains("`HF_HUB_OFFLINE` is set") && hub.asked().is_empty(), "{failure}");
    assert_eq!(failure.class.retries(), 0, "{failure}");
}

/// The cache's folder of the repository.
fn shelf(cache: &Path) -> PathBuf {
    cache.join("hub/models--timm--net")
}

/// The file in which the bytes of the weights lie.
fn blob(cache: &Path) -> PathBuf {
    shelf(cache).join(format!("snapshots/{COMMIT}/model.safetensors")).canonicalize().unwrap()
}

#[tokio::test]
async fn a_hub_that_is_busy_for_a_while_is_asked_again() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    hub.fail(Faults { busy: 7, ..Faults::default() });
    let (found, _) = take(&models(&hub, dir.path(), None), PLACE, false).await;
    assert_eq!(std::fs::read(here(found).path).unwrap(), weights());
    // With files in the cache, nobody waits for long.
    hub.asked();
    hub.fail(Faults { away: true, ..Faults::default() });
    here(take(&models(&hub, dir.path(), None), PLACE, false).await.0);
    assert!((2..6).contains(&hub.asked().len()));
}

#[tokio::test]
async fn what_other_tools_have_brought_is_enough_without_the_hub() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    hub.put("timm/net/preprocess.json", b"{ }".to_vec());
    let online = models(&hub, dir.path(), None);
    here(take(&online, PLACE, false).await.0);
    // Those tools have asked for the weights and their shape alone.
    std::fs::remove_dir_all(shelf(dir.path()).join(".no_exist")).unwrap();
    std::fs::remove_file(shelf(dir.path()).join(format!("snapshots/{COMMIT}/preprocess.json"))).unwrap();
    let web = Arc::new(Web::new(&hub.endpoint, None, true).unwrap());
    let offline = Models { web, ..online.clone() };
    hub.fail(Faults { away: true, ..Faults::default() });
    for models in [&offline, &online] {
        for place in [PLACE, &format!("{PLACE}@{COMMIT}")] {
            for look in [true, false] {
                let (found, said) = take(models, place, look).await;
                assert_eq!(here(found).source.files.len(), 2);
                assert!(said.last().unwrap().contains("goes without `preprocess.json`"), "{said:?}");
            }
        }
    }
    // The weights themselves are never gone without.
    std::fs::remove_file(blob(dir.path())).unwrap();
    assert!(matches!(take(&offline, PLACE, false).await.0, Err(Error::Offline(_))));
}

#[tokio::test]
async fn a_cache_that_has_everything_need_not_be_written() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let models = models(&hub, dir.path(), None);
    let first = here(take(&models, PLACE, false).await.0);
    // What cannot be written, not even by root: there are files where folders should be, and the other way round.
    for folder in [".no_exist", "refs"] {
        let path = shelf(dir.path()).join(folder);
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "").unwrap();
    }
    let lock = blob(dir.path()).with_extension("lock");
    let _ = std::fs::remove_file(&lock);
    std::fs::create_dir(&lock).unwrap();
    std::fs::remove_file(&first.path).unwrap();
    assert_eq!(here(take(&models, PLACE, false).await.0), first);
}

#[tokio::test]
async fn only_the_hubs_own_word_that_a_file_is_not_there_is_remembered() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let models = models(&hub, dir.path(), None);
    hub.fail(Faults { mute: true, ..Faults::default() });
    let failure = take(&models, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(failure.message.contains("404 when asked for `preprocess.json`"), "{failure}");
    assert!(!shelf(dir.path()).join(".no_exist").exists());
}

#[tokio::test]
async fn a_hub_that_speaks_of_another_commit_is_not_believed() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let models = models(&hub, dir.path(), None);
    for (commit, place, says) in [
        ("main", PLACE.to_owned(), "no commit, tag and size"),
        (&"0".repeat(40), format!("{PLACE}@{COMMIT}"), "speaks of commit 000"),
    ] {
        hub.fail(Faults { commit: Some(commit.into()), ..Faults::default() });
        let failure = take(&models, &place, false).await.0.unwrap_err().to_failure(PLACE);
        assert!(failure.message.contains(says), "{failure}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn damaged_bytes_are_thrown_away_only_by_a_job_and_only_in_the_cache() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let models = models(&hub, dir.path(), None);
    here(take(&models, PLACE, false).await.0);
    let inside = blob(dir.path());
    std::fs::write(&inside, "rubbish").unwrap();
    assert!(matches!(take(&models, PLACE, true).await.0, Err(Error::Wrong(_))));
    assert_eq!(std::fs::read(&inside).unwrap(), b"rubbish", "a plan changes nothing");
    // Somebody keeps large files elsewhere.
    let outside = dir.path().join(inside.file_name().unwrap());
    std::fs::rename(&inside, &outside).unwrap();
    std::os::unix::fs::symlink(&outside, &inside).unwrap();
    assert!(matches!(take(&models, PLACE, false).await.0, Err(Error::Wrong(_))));
    assert_eq!(std::fs::read(&outside).unwrap(), b"rubbish");
    std::fs::rename(&outside, &inside).unwrap();
    here(take(&models, PLACE, false).await.0);
    assert_eq!(std::fs::read(&inside).unwrap(), weights());
}

#[tokio::test]
async fn a_mistake_of_ours_is_called_one() {
    let (hub, dir) = (hub(), tempfile::tempdir().unwrap());
    let found = models(&hub, dir.path(), None).take(PLACE, false, |_| panic!("no bytes for {PLACE}")).await;
    let failure = found.unwrap_err().to_failure(PLACE);
    assert_eq!(failure.class, tl_proto::failure::FailureClass::Crash);
    assert!(failure.message.contains("no bytes for hf://timm/net"), "{failure}");
}
