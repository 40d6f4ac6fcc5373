//! A typed async client of `tl`, and `tlctl`.
//!
//! ```no_run
//! use tl_client::{Client, Event, spec_file};
//!
//! # async fn example() -> Result<(), tl_client::Error> {
//! let client = Client::connect("127.0.0.1:7070", None).await?;
//! let spec = spec_file::load("job.toml".as_ref(), &[], &client.catalog().await?)?;
//! let job = client.submit(&spec).await?;
//! let mut watch = job.watch(0);
//! while let Some(event) = watch.next().await? {
//!     if let Event::Metric(row) = event {
//!         println!("step {}: {:?}", row.step, row.values);
//!     }
//! }
//! job.fetch("model".as_ref()).await?;
//! # Ok(())
//! # }
//! ```

mod archive;
pub mod cli;
mod client;
mod data;
mod error;
mod job;
#[cfg(feature = "local")]
pub mod local;
pub mod spec_file;

pub use archive::Archive;
pub use client::Client;
pub use data::{Pushing, place};
pub use error::Error;
pub use job::{Event, Fetched, Job, Watch, metrics};
