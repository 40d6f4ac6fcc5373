//! Commands about nodes.

use serde_json::json;
use tl_proto::v1;

use super::{
    args::Drain,
    output::{Output, shown, table},
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
    let node = match named(&nodes, &a.node)[..] {
        [node] => node.id.clone(),
        [] => a.node.clone(),
        _ => return Err(Error::input(format!("`{}` is more than one node", a.node), "use its id")),
    };
    let node = client.drain(&node, a.undo).await?;
    output.print(&json!({ "event": "node", "node": node }), || {
        let what = if a.undo { "is used again" } else { "is being emptied" };
        format!("{} ({}) {what}", shown(&node.name), node.id)
    });
    Ok(0)
}

/// The nodes that are meant by an id or a name. One that lost its folder has come back as another of the same name: those
/// that are lost are meant only where no other is.
fn named<'a>(nodes: &'a [v1::Node], wanted: &str) -> Vec<&'a v1::Node> {
    let fits = |n: &&v1::Node| n.id == wanted || n.name == wanted;
    let (lost, there): (Vec<_>, Vec<_>) = nodes.iter().filter(fits).partition(|n| n.status == "lost" && n.id != wanted);
    if there.is_empty() { lost } else { there }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_the_node_that_is_there() {
        let node = |id: &str, name: &str, status: &str| v1::Node {
            id: id.into(),
            name: name.into(),
            status: status.into(),
            ..v1::Node::default()
        };
        let nodes = [
            node("1", "a", "lost"),
            node("2", "a", "ready"),
            node("3", "b", "lost"),
            node("4", "c", "ready"),
            node("5", "c", "unknown"),
        ];
        let ids = |wanted: &str| named(&nodes, wanted).iter().map(|n| n.id.as_str()).collect::<Vec<_>>().join(" ");
        assert_eq!(["a", "b", "c", "1", "d"].map(ids), ["2", "3", "4 5", "1", ""]);
    }
}
