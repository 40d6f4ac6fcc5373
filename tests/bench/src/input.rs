//! Photos on disk to network inputs, on one core: decoded, resized, cut, turned, zoomed, mirrored, normalised.

use tl_engine::{
    data::{self, augment::View, pixels},
    weights::Contract,
};
use tl_proto::spec::DataSection;

use crate::{Options, harness::Harness};

/// One repetition is one photo; each comes with another view every time.
pub fn images(options: &Options, harness: &mut Harness) -> anyhow::Result<()> {
    let folder = options.data()?.join("hymenoptera/train").display().to_string();
    let text = format!(
        r#"
format = "image_folder"
train = "{folder}"
val = "{folder}"
batch = 8
augment = {{ flip = true, rotate = 0.1, zoom = 0.1, crop = 0.1, views = "fresh" }}
"#
    );
    let section: DataSection = toml::from_str(&text)?;
    let photos = data::open(&section, "train", 1)?;
    let contract = Contract { resize_short_side: 256, ..Contract::named("torch", 224, None)? };
    let mut input = vec![0.0; pixels::values(&contract)];
    let (count, mut next) = (photos.labels().len(), 0);
    let mut one = || -> anyhow::Result<()> {
        let (index, view) = (next % count, next / count + 1);
        next += 1;
        let image = photos.load(index).map_err(anyhow::Error::msg)?;
        let square = pixels::square(&image, contract.filter(), contract.resize_short_side as usize, contract.side());
        let square = pixels::Square::Bytes(square);
        let view = View::draw(&section.augment, 1, &photos.digest(index), view as u64);
        pixels::input(&square, &view, &contract, &mut input);
        anyhow::ensure!(input[0].is_finite(), "no number");
        Ok(())
    };
    (0..32).try_for_each(|_| one())?;
    harness.serve(one)
}
