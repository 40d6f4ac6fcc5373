//! Commands about nodes.

use serde_json::json;

use super::{
    args::Drain,
    output::{Output, table},
};
use crate::{Client, Error};

pub(super) async fn list(client: &Client, output: &Output) -> Result<u8, Error> {
    let nodes = client.nodes().await?;
    output.print(&json!({ "event": "nodes", "nodes": nodes }), || {
        let rows = nodes.iter().map(|n| {
            let used = format!("{}/{}", n.busy, n.slots);
            let (name, machine, build) = (n.name.clone(), n.machine.clone(), n.build.clone());
            vec![n.id.clone(), name, n.status.clone(), n.device.clone(), used, machine, build]
        });
        table(&["ID", "NAME", "STATUS", "DEVICE", "USED", "MACHINE", "BUILD"], &rows.collect::<Vec<_>>())
    });
    Ok(0)
}

pub(super) async fn drain(client: &Client, a: &Drain, output: &Output) -> Result<u8, Error> {
    let nodes = client.nodes().await?;
    let mut found = nodes.iter().filter(|n| n.id == a.node || n.name == a.node);
    let node = match (found.next(), found.next()) {
        (Some(node), None) => node.id.clone(),
        (Some(_), Some(_)) => return Err(Error::input(format!("`{}` is more than one node", a.node), "use its id")),
        (None, _) => a.node.clone(),
    };
    let node = client.drain(&node, a.undo).await?;
    output.print(&json!({ "event": "node", "node": node }), || {
        let what = if a.undo { "is used again" } else { "is being emptied" };
        format!("{} ({}) {what}", node.name, node.id)
    });
    Ok(0)
}
