//! `tests/gpu/run.sh`, with programs that stand for those of a machine with a GPU: what it writes, whatever they do.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

const DOCTOR: &str = r#"echo '{"hardware":{"gpus":[{"index":0,"name":"Some GPU"}],"driver":"580.1"},
"libraries":[{"name":"NCCL","version":"2.27.6"}],"data_roots":[]}'"#;

/// What it says of each part, its whole file, and whether it is content. Programs are a name and a line of shell each; two
/// seconds for each part, and so many for all.
fn run(programs: &[(&str, &str)], total: &str) -> (BTreeMap<String, [String; 3]>, Value, bool) {
    run_with(programs, total, &[])
}

/// The same with something more in its environment.
fn run_with(
    programs: &[(&str, &str)],
    total: &str,
    environment: &[(&str, &str)],
) -> (BTreeMap<String, [String; 3]>, Value, bool) {
    let dir = tempfile::tempdir().unwrap();
    put(&dir, programs);
    visit(&dir, total, environment)
}

/// Puts programs into the folder that they are looked for in.
fn put(dir: &TempDir, programs: &[(&str, &str)]) {
    for (name, line) in programs {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Runs the script with the programs of a folder, which its file comes to, too; those in `bin` come before the machine's own.
fn visit(dir: &TempDir, total: &str, environment: &[(&str, &str)]) -> (BTreeMap<String, [String; 3]>, Value, bool) {
    let file = dir.path().join("gpu.json");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/run.sh"));
    command.arg(&file).env("TL_GPU_PROGRAMS", dir.path()).env("TL_GPU_SECONDS", "2").env("TL_GPU_TOTAL", total);
    command.env("PATH", format!("{}/bin:{}", dir.path().display(), std::env::var("PATH").unwrap()));
    let done = command.env_remove("TL_TEST_DATA").envs(environment.iter().copied()).output().unwrap();
    let words = String::from_utf8_lossy(&done.stderr);
    let written = fs::read_to_string(&file).unwrap();
    let all: Value = serde_json::from_str(&written).unwrap_or_else(|e| panic!("{e}: {written} {words}"));
    let text = |part: &Value, key: &str| part[key].as_str().unwrap().to_owned();
    let parts = all["parts"].as_array().unwrap();
    let parts = parts.iter().map(|p| (text(p, "name"), ["status", "note", "output"].map(|key| text(p, key)))).collect();
    (parts, all, done.status.success())
}

/// Whether the machine has what PyTorch would be asked with.
fn python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|o| o.status.success())
}

#[test]
fn what_fails_on_a_gpu_is_told_from_what_is_not_there_and_any_output_is_kept() {
    let odd = r#"printf 'a "quoted" back\\slash\ttab \033[31mred & \r\nleft out: one\ntest result: ok. 9 passed'"#;
    let nccl = r#"case "$4" in one*) exit 7;; *hosts*) echo "a ... skipped: no NCCL";; *) echo "0 passed";; esac"#;
    let jobs = r#"case "$4" in
        *photos*) echo "$TL_TEST_DATA $TL_SANDBOX"; echo 'test result: ok. 1 passed';;
        *hosts*) exec sleep 60;;
        *) echo 'test result: ok. 1 passed';;
    esac"#;
    let programs = [
        ("tl-worker", DOCTOR),
        ("operations-tests", odd),
        ("nccl-tests", nccl),
        ("jobs-tests", jobs),
        ("tlctl", ""),
        ("data/photo", ""),
    ];
    let (parts, all, fine) = run(&programs, "60");
    assert!(!fine);
    assert_eq!((&all["chip"], &all["driver"]), (&"Some GPU".into(), &"580.1".into()));
    assert_eq!(all["libraries"][0]["version"], "2.27.6");
    assert!(all["date"].as_str().unwrap().ends_with('Z') && all["parts"][0]["seconds"].is_f64(), "{all}");
    let told = |name: &str| [parts[name][0].as_str(), parts[name][1].as_str()];
    assert_eq!(told("doctor"), ["ok", ""]);
    assert_eq!(told("operations"), ["ok", ""]);
    let output = "a \"quoted\" back\\slash\ttab [31mred & \nleft out: one\ntest result: ok. 9 passed";
    assert_eq!(parts["operations"][2], output);
    assert_eq!(told("nccl_one"), ["failed", "ended with 7"]);
    assert_eq!(told("nccl_hosts"), ["not there", "skipped: no NCCL"]);
    assert_eq!(told("nccl_shared"), ["failed", "no test has run"]);
    assert_eq!([told("job"), told("photos"), told("gang_shared")], [["ok", ""]; 3]);
    let [photos, program] = ["/data ", "/tlctl\n"].map(|end| parts["photos"][2].contains(end));
    assert!(photos && program, "{parts:?}");
    assert_eq!(told("gang_hosts"), ["failed", "not done within 2 s"]);
    assert_eq!(all["bench"], Value::Array(Vec::new()));
}

/// On a real GPU, one that says it is skipped makes all of them count for nothing.
#[test]
fn no_test_among_those_of_operations_says_that_it_is_skipped() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/engine/tests/gpu");
    let says = |path: &Path| fs::read_to_string(path).unwrap().contains("skipped: ");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all: Vec<_> = files.filter(|path| says(path)).map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(all, ["main.rs"]);
}

#[test]
fn without_a_gpu_only_what_needs_none_is_tried_and_that_is_no_failure() {
    let doctor = r#"echo '{"hardware":{"gpus":[],"driver":""},"libraries":[],"data_roots":[]}'"#;
    // The tests would pass, on fakes.
    let tests = "echo 'test result: ok. 9 passed'";
    let (parts, all, fine) = run(&[("tl-worker", doctor), ("operations-tests", tests), ("jobs-tests", tests)], "60");
    assert!(fine, "{all}");
    assert_eq!((&all["chip"], &parts["doctor"][0]), (&"".into(), &"ok".to_owned()));
    for (name, note) in [
        ("operations", "there is no GPU"),
        ("nccl_one", "there is no program nccl-tests"),
        ("photos", "there is no program tlctl"),
    ] {
        assert_eq!((parts[name][0].as_str(), parts[name][1].as_str()), ("not there", note));
    }
    assert!(parts.values().all(|[status, ..]| status == "ok" || status == "not there"), "{parts:?}");
}

#[test]
fn what_there_is_no_time_for_is_left_out_by_name() {
    let slow = "sleep 3; echo 'test result: ok. 9 passed'";
    let (parts, all, fine) = run(&[("tl-worker", DOCTOR), ("operations-tests", slow), ("nccl-tests", slow)], "5");
    assert!(!fine, "{all}");
    assert_eq!(parts["operations"][0], "failed");
    let [status, note, _] = &parts["nccl_shared"];
    assert_eq!((status.as_str(), note.as_str()), ("left out", "there was no time left"));
    assert_eq!(parts["job"][0], "not there", "what is missing is said all the same");
}

#[test]
fn what_was_killed_and_what_had_too_little_time_are_told_from_what_is_slow() {
    let programs = [("tl-worker", DOCTOR), ("nccl-tests", "kill -9 $$"), ("operations-tests", "exec sleep 60")];
    let environment = [("TL_GPU_ONLY", "operations nccl_one"), ("TL_GPU_SECONDS", "50")];
    let (parts, _, fine) = run_with(&programs, "4", &environment);
    assert!(!fine);
    let [status, note, _] = &parts["operations"];
    assert!(note.starts_with("there were ") && note.ends_with(" s left of the 50 s that it may have"), "{note}");
    assert_eq!((status.as_str(), parts["nccl_one"][0].as_str()), ("left out", "left out"));
    let (parts, ..) = run_with(&programs, "60", &[("TL_GPU_ONLY", "nccl_one")]);
    assert_eq!(parts["nccl_one"][..2], ["failed", "was killed by signal 9"]);
}

/// Where the doctor has looked, nobody else is asked; and tests are told to make nothing that stands for a GPU.
#[test]
fn a_machine_whose_doctor_sees_no_gpu_has_none_whatever_other_tools_say() {
    let blind = r#"echo '{"hardware":{"gpus":[],"driver":""},"libraries":[],"data_roots":[]}'"#;
    let tests = r#"echo "real: $TL_GPU_REAL $NCCL_COMM_BLOCKING"; echo 'test result: ok. 1 passed'"#;
    let dir = tempfile::tempdir().unwrap();
    put(&dir, &[("tl-worker", blind), ("nccl-tests", tests), ("bin/nvidia-smi", "echo Other GPU")]);
    let (parts, all, _) = visit(&dir, "60", &[]);
    assert_eq!((&all["chip"], parts["nccl_one"][0].as_str()), (&"".into(), "not there"));
    // One that hangs over its driver has not looked.
    put(&dir, &[("tl-worker", "exit 3")]);
    let (parts, all, _) = visit(&dir, "60", &[]);
    assert_eq!((&all["chip"], parts["nccl_one"][0].as_str()), (&"Other GPU".into(), "ok"));
    assert!(parts["nccl_one"][2].starts_with("real: 1 0\n"), "{parts:?}");
}

#[test]
fn a_second_visit_adds_to_the_first_what_is_of_the_same_build_and_machine() {
    let passes = "echo 'a ... over NCCL 2.27.6 of /usual/libnccl.so.2'; echo 'test result: ok. 1 passed'";
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("commit"), "abc\n").unwrap();
    put(&dir, &[("tl-worker", DOCTOR), ("nccl-tests", passes), ("operations-tests", "exit 1")]);
    visit(&dir, "60", &[]);
    put(&dir, &[("operations-tests", passes)]);
    fs::remove_file(dir.path().join("nccl-tests")).unwrap();
    let (parts, all, fine) = visit(&dir, "60", &[("TL_GPU_ONLY", "operations nccl_one")]);
    assert!(fine, "{all}");
    let told = ["operations", "nccl_one", "nccl_hosts", "job"].map(|name| parts[name][0].as_str());
    assert_eq!(told, ["ok", "ok", "ok", "not there"]);
    let named = |name: &str| all["parts"].as_array().unwrap().iter().find(|part| part["name"] == name).unwrap();
    let nccl = ["nccl_one", "doctor"].map(|name| named(name)["nccl"].as_str().unwrap());
    assert_eq!(nccl, ["2.27.6 of /usual/libnccl.so.2", ""]);
    fs::write(dir.path().join("commit"), "def\n").unwrap();
    let (parts, ..) = visit(&dir, "60", &[("TL_GPU_ONLY", "operations")]);
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["doctor", "operations"]);
}

#[test]
fn a_second_visit_whose_doctor_hangs_or_sees_no_gpu_destroys_nothing_of_the_first() {
    let passes = "echo 'test result: ok. 1 passed'";
    let dir = tempfile::tempdir().unwrap();
    put(&dir, &[("tl-worker", DOCTOR), ("operations-tests", passes), ("nccl-tests", passes)]);
    visit(&dir, "60", &[]);
    // It is the same machine, as another tool says.
    put(&dir, &[("tl-worker", "exit 3"), ("bin/nvidia-smi", "echo 'Some GPU, 580.1'; echo 'Some GPU, 580.1'")]);
    let (parts, all, _) = visit(&dir, "60", &[("TL_GPU_ONLY", "nccl_one")]);
    assert_eq!((&all["chip"], &all["driver"]), (&"Some GPU".into(), &"580.1".into()));
    assert_eq!(["doctor", "operations", "nccl_one"].map(|name| parts[name][0].as_str()), ["failed", "ok", "ok"]);
    put(&dir, &[("tl-worker", r#"echo '{"hardware":{"gpus":[],"driver":""},"libraries":[],"data_roots":[]}'"#)]);
    let (same, ..) = visit(&dir, "60", &[]);
    assert_eq!(same, parts);
    let none: Value = serde_json::from_slice(&fs::read(dir.path().join("gpu.json.none")).unwrap()).unwrap();
    assert_eq!(none["chip"], "");
    assert!(!dir.path().join("gpu.json.part").exists());
}

#[test]
fn a_driver_that_hangs_when_libraries_are_looked_for_does_not_take_longer_than_all() {
    let started = Instant::now();
    let (parts, ..) = run(&[("tl-worker", "exec sleep 60")], "2");
    assert_eq!(parts["doctor"][0], "left out");
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_anything_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir, &[("tl-worker", "touch \"$TL_GPU_PROGRAMS/tried\"")]);
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("gpu/run.sh"));
    let done = command.arg(dir.path()).env("TL_GPU_PROGRAMS", dir.path()).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(String::from_utf8_lossy(&done.stderr).contains(" cannot be written"), "{done:?}");
    assert!(!dir.path().join("tried").exists());
}

/// cudarc asks for names without a version first.
#[test]
fn a_name_without_a_version_leads_to_the_file_that_the_program_takes() {
    let worker = format!(
        r#"case $1 in
            look) echo '[{{"name":"cuBLAS","path":"'"$TL_GPU_PROGRAMS"'/libcublas.so.12.9","problem":""}}]';;
            *) {DOCTOR};;
        esac"#
    );
    let tests = r#"readlink "${LD_LIBRARY_PATH%%:*}/libcublas.so"; echo 'test result: ok. 1 passed'"#;
    let dir = tempfile::tempdir().unwrap();
    put(&dir, &[("tl-worker", worker.as_str()), ("operations-tests", tests), ("libcublas.so.12.9", "")]);
    let (parts, ..) = visit(&dir, "60", &[("TL_GPU_ONLY", "operations")]);
    let file = dir.path().canonicalize().unwrap().join("libcublas.so.12.9").display().to_string();
    assert_eq!(parts["operations"][2].lines().next(), Some(file.as_str()), "{parts:?}");
}

#[test]
fn rows_of_the_benchmark_are_in_the_file_also_where_it_was_stopped() {
    if !python() {
        eprintln!("skipped: there is no python3");
        return;
    }
    let bench = r#"for last; do :; done; echo '[{"name":"resnet50_bf16","ours":2.5}]' >"$last"; echo "$@"; sleep 60"#;
    let (parts, all, fine) = run(&[("tl-worker", DOCTOR), ("bench/run", bench)], "60");
    assert!(!fine, "{all}");
    assert_eq!((parts["bench"][0].as_str(), parts["bench"][1].as_str()), ("failed", "not done within 2 s"));
    assert!(parts["bench"][2].starts_with("--device cuda:0 --ours /"), "{parts:?}");
    assert_eq!((&all["bench"][0]["name"], all["bench"][0]["ours"].as_f64()), (&"resnet50_bf16".into(), Some(2.5)));
}

#[test]
fn a_benchmark_without_pytorchs_figures_or_with_rows_left_out_is_not_ok() {
    if !python() {
        eprintln!("skipped: there is no python3");
        return;
    }
    let row = |ours: &str, theirs: &str, note: &str| {
        format!(r#"{{"name": "a", "ours": {ours}, "theirs": {theirs}, "note": "{note}"}}"#)
    };
    let whole = row("2.5", "2.0", "PyTorch 2.9");
    for (other, want) in [
        (row("1.5", "1.0", ""), ["ok", ""]),
        (row("1.5", "null", "left out: PyTorch (none)"), ["ours alone", "left out: PyTorch (none)"]),
        (row("null", "null", "left out: no time"), ["left out", "there was no time left for some rows"]),
    ] {
        let bench = format!("for last; do :; done; echo '[{whole}, {other}]' >\"$last\"");
        let (parts, _, fine) = run(&[("tl-worker", DOCTOR), ("bench/run", bench.as_str())], "60");
        assert_eq!((&parts["bench"][..2], fine), (&want.map(str::to_owned)[..], want[0] != "left out"));
    }
    let none = row("null", "null", "left out: no library");
    let bench = format!("for last; do :; done; echo '[{none}]' >\"$last\"");
    let (parts, ..) = run(&[("tl-worker", DOCTOR), ("bench/run", bench.as_str())], "60");
    assert_eq!(parts["bench"][..2], ["not there", "left out: no library"]);
    let (parts, ..) = run(&[("tl-worker", DOCTOR), ("bench/run", "")], "60");
    assert_eq!(parts["bench"][..2], ["failed", "it has written no rows"]);
}

/// Such a python3 may be there and too old, or lack half of itself.
#[test]
fn where_python_cannot_run_the_benchmark_the_projects_side_runs_alone() {
    let programs = [("tl-worker", DOCTOR), ("tl-bench", "cat"), ("bench/run", "exit 1"), ("bin/python3", "exit 1")];
    let (parts, _, fine) = run_with(&programs, "60", &[("TL_GPU_ONLY", "bench")]);
    assert!(fine, "{parts:?}");
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["bench_bert", "bench_resnet50", "doctor"]);
    assert_eq!(parts["bench_bert"][0], "ours alone");
    assert!(parts["bench_bert"][2].starts_with("go 10\n"), "{parts:?}");
}

#[test]
fn the_two_benchmarks_have_every_row_once_between_them() {
    if !python() {
        eprintln!("skipped: there is no python3");
        return;
    }
    let (parts, ..) = run(&[("tl-worker", DOCTOR), ("bench/run", r#"echo "$@""#)], "60");
    let of = |part: &str| {
        let mut words = parts[part][2].split_whitespace();
        words.find(|word| *word == "--only").and_then(|_| words.next()).unwrap().split(',')
    };
    let mut asked: Vec<&str> = of("bench").chain(of("bench_more")).collect();
    let mut real = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/run"));
    let told = real.args(["--device", "cuda:0", "--only", "none"]).output().unwrap();
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    let mut known: Vec<&str> = told.split_once("known: ").unwrap().1.trim().split(", ").collect();
    asked.sort_unstable();
    known.sort_unstable();
    assert_eq!(asked, known);
}

#[test]
fn parts_are_tried_alone_where_they_are_named_and_over_a_newer_nccl_what_wants_one() {
    let nccl = r#"echo "over $NVLIB_PATH"; echo 'test result: ok. 1 passed'"#;
    let environment = [("TL_GPU_ONLY", "nccl_hosts nccl_shared"), ("TL_NCCL", "/newer"), ("NVLIB_PATH", "/usual")];
    let (parts, _, fine) = run_with(&[("tl-worker", DOCTOR), ("nccl-tests", nccl)], "60", &environment);
    assert!(fine, "{parts:?}");
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["doctor", "nccl_hosts", "nccl_shared"]);
    assert!(parts["nccl_hosts"][2].starts_with("over /usual"), "{parts:?}");
    assert!(parts["nccl_shared"][2].starts_with("over /newer:/usual"), "{parts:?}");
}
