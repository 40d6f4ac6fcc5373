//! Commands about pushed data sets.

use std::{path::Path, sync::Arc};

use serde_json::json;
use tl_proto::{spec::Pushed, v1};

use super::{
    args::{DataCommand, DataPush},
    output::{Output, table},
};
use crate::{Client, Error, Pushing, place};

pub(super) async fn run(client: &Client, command: DataCommand, output: &Output) -> Result<u8, Error> {
    match command {
        DataCommand::Push(a) => push(client, &a, output).await,
        DataCommand::Ls => list(client, output).await,
        DataCommand::Rm { data } => remove(client, &data, output).await,
    }
}

async fn push(client: &Client, a: &DataPush, output: &Output) -> Result<u8, Error> {
    let shown = Path::new(&a.path).canonicalize().map_err(Error::file(&a.path))?;
    let label = shown.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = a.name.clone().or(label).unwrap_or_default();
    let bar = Arc::new(output.bytes_bar());
    let shows = bar.clone();
    let pushed = client.push_data(&a.path, &name, move |how| match how {
        Pushing::Hashed(n) => shows.show("reading", n),
        Pushing::Sent(n) => shows.show("sending", n),
    });
    let set = tokio::select! {
        set = pushed => set,
        _ = tokio::signal::ctrl_c() => {
            bar.clear();
            output.say("what has arrived is kept; the same command goes on there");
            return Ok(super::INTERRUPTED);
        }
    };
    bar.clear();
    let set = set?;
    output.print(&json!({ "event": "pushed", "data": place(&set), "set": shape(&set) }), || place(&set));
    Ok(0)
}

fn shape(set: &v1::DataSet) -> serde_json::Value {
    let bytes = set.archive.as_ref().map_or(0, |a| a.size);
    json!({ "data": place(set), "name": set.name, "files": set.files, "bytes": bytes, "pushed_ms": set.pushed_ms })
}

async fn list(client: &Client, output: &Output) -> Result<u8, Error> {
    let sets = client.data_sets().await?;
    let rows = |s: &v1::DataSet| {
        let bytes = s.archive.as_ref().map_or(0, |a| a.size);
        vec![s.name.clone(), s.files.to_string(), indicatif::HumanBytes(bytes).to_string(), place(s)]
    };
    output.print(&json!({ "event": "data", "sets": sets.iter().map(shape).collect::<Vec<_>>() }), || {
        table(&["name", "files", "size", "use it as"], &sets.iter().map(rows).collect::<Vec<_>>())
    });
    Ok(0)
}

async fn remove(client: &Client, wanted: &str, output: &Output) -> Result<u8, Error> {
    let sets = client.data_sets().await?;
    // Its label, its name, or enough digits of it that nobody hits it by accident.
    let digits = wanted.strip_prefix("data:").unwrap_or(wanted);
    let begins =
        |s: &v1::DataSet| digits.len() >= 6 && place(s).strip_prefix("data:").is_some_and(|d| d.starts_with(digits));
    let fits = |s: &&v1::DataSet| s.name == wanted || begins(s);
    let mut found = sets.iter().filter(fits);
    let set = match (found.next(), found.next()) {
        (Some(set), None) => set,
        (Some(_), Some(_)) => {
            return Err(Error::input(
                format!("`{wanted}` is more than one data set"),
                "`tlctl data ls` has whole names",
            ));
        }
        (None, _) => {
            return Err(Error::Refused {
                code: tonic::Code::NotFound,
                message: format!("there is no data set `{wanted}`"),
                hint: "`tlctl data ls` lists them".into(),
            });
        }
    };
    let name = place(set);
    if let Ok(Some(pushed)) = Pushed::parse(&name) {
        client.remove_data(pushed.digest).await?;
    }
    output.print(&json!({ "event": "removed", "data": name }), || {
        format!("{name} is gone from the coordinator; nodes that have used it keep it until they need its room")
    });
    Ok(0)
}
