//! Compiles the `.proto` files without `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["tl/v1/common.proto", "tl/v1/user.proto", "tl/v1/node.proto", "tl/v1/blob.proto", "tl/v1/data.proto"];
    println!("cargo::rerun-if-changed=tl");
    let descriptors = protox::compile(files, ["."])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"), descriptors.encode_to_vec())?;
    let services = env::var_os("CARGO_FEATURE_GRPC").is_some();
    let mut config = tonic_prost_build::configure().build_client(services).build_server(services).btree_map(".");
    // What users see is JSON too: on the dashboard and in `--output json`.
    let shown = [
        "Failure",
        "BlobRef",
        "Artifact",
        "MetricRow",
        "LogLine",
        "Activity",
        "Job",
        "Phase",
        "Placement",
        "Node",
        "Hardware",
        "Gpu",
    ];
    for message in shown {
        config = config.message_attribute(format!(".tl.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    for field in ["Job.spec_json", "Job.compared_json", "Phase.result_json"] {
        config = config.field_attribute(format!(".tl.v1.{field}"), "#[serde(serialize_with = \"crate::raw_json\")]");
    }
    Ok(config.compile_fds(descriptors)?)
}
