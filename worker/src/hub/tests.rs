//! The cache against a hub on this machine.

use std::{
    path::Path,
    sync::{Arc, Mutex},
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
    let web = Arc::new(Web::new(&hub.endpoint, token.map(str::to_owned), false));
    Models { web, cache: Cache::new(cache.join("hub")), bringing: Keyed::default() }
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
    let web = Arc::new(Web::new(&hub.endpoint, None, true));
    let offline = Models { web, cache: Cache::new(elsewhere.path().into()), bringing: Keyed::default() };
    hub.asked();
    let failure = take(&offline, PLACE, false).await.0.unwrap_err().to_failure(PLACE);
    assert!(failure.message.contains("`HF_HUB_OFFLINE` is set") && hub.asked().is_empty(), "{failure}");
}
