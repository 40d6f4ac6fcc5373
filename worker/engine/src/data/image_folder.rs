//! JPEG and PNG files in a folder per class, at any depth, or in a list; as they are, or as their negatives.

use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use tl_proto::{
    catalog::{Entry, entry},
    spec::Params,
};

use super::{
    Dataset, Format, Image,
    caught::caught,
    files::{self, Files, MAX_FILE},
    inverted, read_file,
    stray::Kind,
};
use crate::Result;

pub(super) const FORMAT: Format = Format { entry: describe, open, bare };

/// Largest side of an image, in pixels: bounds what a crafted header can make us allocate.
const MAX_SIDE: u32 = 20_000;

/// Files of images, with those of formats that are not read here.
const KIND: Kind = Kind {
    what: "JPEG or PNG image",
    endings: &["jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "tif", "tiff", "webp", "pgm", "ppm", "heic", "avif"],
    begins: |start| start.starts_with(b"\xff\xd8") || start.starts_with(b"\x89PNG"),
};

struct ImageFolder(Files);

fn describe() -> Entry {
    Entry {
        params: files::params().into_iter().chain([inverted::param()]).collect(),
        ..entry(
            "image_folder",
            "a folder per class with JPEG or PNG images in it, or a list: text with the path of an image on each line and, \
             behind it, its class; where no labels are wanted, any folder with images, or a list without classes",
        )
    }
}

fn open(place: &str, part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    Ok(inverted::as_asked(Box::new(ImageFolder(Files::open(place, part, params, &KIND)?)), params))
}

/// Every file at any depth, whatever its folder is called.
fn bare(place: &str, part: &str, params: &Params, _seed: u32) -> Result<Box<dyn Dataset>> {
    Ok(inverted::as_asked(Box::new(ImageFolder(Files::bare(place, part, params, &KIND)?)), params))
}

impl Dataset for ImageFolder {
    fn classes(&self) -> &[String] {
        &self.0.classes
    }
    fn labels(&self) -> &[usize] {
        &self.0.labels
    }
    fn name(&self, index: usize) -> String {
        self.0.files[index].0.clone()
    }
    fn digest(&self, index: usize) -> [u8; 32] {
        self.0.digests[index]
    }
    fn load(&self, index: usize) -> Result<Image, String> {
        let bytes = read_file(&self.0.files[index].1, MAX_FILE).map_err(|e| e.to_string())?;
        decode(&bytes)
    }
    fn passed_over(&self) -> Option<&str> {
        self.0.passed_over.as_deref()
    }
}

/// Decodes a JPEG or PNG, turned as its camera says, to three channels whatever it has.
///
/// # Errors
/// Says in words what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Image, String> {
    caught(|| upright(bytes))
}

fn upright(bytes: &[u8]) -> Result<Image, String> {
    let fail = |e: ImageError| match e {
        ImageError::Limits(_) => format!("it is larger than can be read, at most {MAX_SIDE} pixels a side: shrink it"),
        other => other.to_string(),
    };
    let mut reader = ImageReader::new(std::io::Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let format = reader.format().ok_or("it is neither JPEG nor PNG")?;
    // The decoder would fill what is missing with grey.
    if format == ImageFormat::Jpeg && !is_whole(bytes) {
        return Err("it is cut off: no end-of-image marker follows its scans".into());
    }
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder().map_err(fail)?;
    // As it is decoded, and beside it, unless that is the same, as three bytes a pixel.
    let (width, height) = decoder.dimensions();
    let rgb = if decoder.color_type() == ColorType::Rgb8 { 0 } else { 3 * u64::from(width) * u64::from(height) };
    limits.reserve(decoder.total_bytes().saturating_add(rgb)).map_err(|_| {
        format!("it has {width} x {height} pixels, which take more memory than an image may: shrink it")
    })?;
    let orientation = decoder.orientation().map_err(fail)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(fail)?;
    image.apply_orientation(orientation);
    let rgb = image.into_rgb8();
    Ok(Image { width: rgb.width() as usize, height: rgb.height() as usize, bytes: rgb.into_raw() })
}

/// Whether a JPEG goes on to its end-of-image marker; whatever a camera has put behind that does not count.
fn is_whole(jpeg: &[u8]) -> bool {
    let (mut at, mut scanned) = (2, false);
    while let [first, second, rest @ ..] = jpeg.get(at..).unwrap_or_default() {
        at += match (*first, *second) {
            (0xff, 0xd9) if scanned => return true,
            // Fill before a marker.
            (0xff, 0xff) => 1,
            // A byte 0xff of a scan, and markers that have no segment.
            (0xff, 0x00 | 0x01 | 0xd0..=0xd9) => 2,
            // A segment, whose length counts itself; a thumbnail in it may have markers of its own.
            (0xff, marker) => {
                scanned |= marker == 0xda;
                let [high, low, ..] = *rest else { return false };
                2 + usize::from(u16::from_be_bytes([high, low])).max(2)
            }
            _ => 1,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use image::{ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};

    use super::*;
    use crate::data::pixels::{Filter, square};

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let image: DynamicImage = image.into();
        let mut out = std::io::Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    /// Dark on the left, light on the right.
    fn halves() -> RgbImage {
        RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([10; 3]) } else { Rgb([240; 3]) })
    }

    #[test]
    fn the_content_counts_not_the_extension() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b/1.png", "a/z.JPG"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            RgbImage::from_pixel(4, 3, Rgb([9, 8, 7])).save_with_format(path, ImageFormat::Png).unwrap();
        }
        let set = open(&dir.path().display().to_string(), "train", &Params::new(), 0).unwrap();
        assert_eq!((set.name(0).as_str(), set.classes()[set.labels()[0]].as_str()), ("a/z.JPG", "a"));
        let decoded = set.load(0).unwrap();
        assert_eq!((decoded.width, decoded.height), (4, 3));
    }

    #[test]
    fn a_photo_is_turned_as_its_camera_says() {
        let jpeg = encoded(halves(), ImageFormat::Jpeg);
        let plain = decode(&jpeg).unwrap();
        assert_eq!((plain.width, plain.height), (16, 8));
        // An Exif segment whose one entry is the orientation 6: a quarter turn to the right.
        let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let turned = decode(&[&jpeg[..2], &exif[..], &jpeg[2..]].concat()).unwrap();
        assert_eq!((turned.width, turned.height), (8, 16));
        let row = |y: usize| turned.bytes[y * 8 * 3..(y + 1) * 8 * 3].to_vec();
        assert!(row(0).iter().all(|v| *v < 60) && row(15).iter().all(|v| *v > 190), "left has become top");
    }

    #[test]
    fn a_jpeg_that_is_cut_off_is_refused_and_trailing_bytes_are_not() {
        let jpeg = encoded(halves(), ImageFormat::Jpeg);
        for len in [jpeg.len() - 2, jpeg.len() - 1, jpeg.len() / 2, 30] {
            let error = decode(&jpeg[..len]).unwrap_err();
            assert!(error.contains("cut off"), "{len} bytes: {error}");
        }
        // A thumbnail in front has a scan and an end of its own.
        let thumbnail = b"\xff\xe2\x00\x08\xff\xda\x00\x02\xff\xd9";
        let cut = [&jpeg[..2], &thumbnail[..], &jpeg[2..jpeg.len() / 2]].concat();
        assert!(decode(&cut).unwrap_err().contains("cut off"));
        let trailing = [&jpeg[..], &b"\xff\xda\x00\x08 and a film"[..]].concat();
        assert_eq!(decode(&trailing).unwrap(), decode(&jpeg).unwrap());
    }

    #[test]
    fn every_kind_of_pixel_becomes_three_bytes() {
        let png = ImageFormat::Png;
        let deep = ImageBuffer::from_pixel(3, 2, Luma([200u16 << 8]));
        let deep_alpha = ImageBuffer::from_pixel(3, 2, Rgba([200u16 << 8, 100 << 8, 0, 9]));
        let rows = [
            (encoded(ImageBuffer::from_pixel(3, 2, Luma([200u8])), png), [200, 200, 200]),
            (encoded(ImageBuffer::from_pixel(3, 2, LumaA([200u8, 9])), png), [200, 200, 200]),
            (encoded(ImageBuffer::from_pixel(3, 2, Rgba([200u8, 100, 0, 9])), png), [200, 100, 0]),
            (encoded(deep, png), [200, 200, 200]),
            (encoded(deep_alpha, png), [200, 100, 0]),
            (encoded(ImageBuffer::from_pixel(3, 2, Luma([200u8])), ImageFormat::Jpeg), [200, 200, 200]),
        ];
        for (i, (bytes, want)) in rows.iter().enumerate() {
            let image = decode(bytes).unwrap();
            assert_eq!((image.width, image.height, image.bytes.len()), (3, 2, 18));
            let off = image.bytes.iter().zip(want.iter().cycle()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off.unwrap() <= 1, "row {i}: {:?}", image.bytes);
        }
    }

    /// A PNG in grey of so many bits a pixel, with no interlacing; of each row its filter, which is none, and its pixels.
    fn grey(width: u32, height: u32, bits: u8, rows: &[u8]) -> Vec<u8> {
        let chunk = |kind: &[u8], data: &[u8]| {
            let mut crc = flate2::Crc::new();
            [kind, data].iter().for_each(|part| crc.update(part));
            [&(data.len() as u32).to_be_bytes()[..], kind, data, &crc.sum().to_be_bytes()[..]].concat()
        };
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(rows).unwrap();
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes()[..], &[bits, 0, 0, 0, 0][..]].concat();
        let chunks = [chunk(b"IHDR", &header), chunk(b"IDAT", &packed.finish().unwrap()), chunk(b"IEND", &[])];
        [&b"\x89PNG\r\n\x1a\n"[..], &chunks.concat()[..]].concat()
    }

    /// A PNG of one bit a pixel.
    fn one_bit(width: u32, height: u32, white: impl Fn(u32, u32) -> bool) -> Vec<u8> {
        let row = |y: u32| {
            let mut bytes = vec![0u8; 1 + width.div_ceil(8) as usize];
            (0..width).filter(|x| white(*x, y)).for_each(|x| bytes[1 + x as usize / 8] |= 0x80u8 >> (x % 8));
            bytes
        };
        grey(width, height, 1, &(0..height).flat_map(row).collect::<Vec<u8>>())
    }

    #[test]
    fn an_image_that_takes_too_much_memory_is_told_by_its_size() {
        // In grey it takes 144 MB, and 432 MB more as three bytes a pixel.
        let error = decode(&grey(12_000, 12_000, 8, &[])).unwrap_err();
        assert!(error.contains("12000 x 12000 pixels"), "{error}");
        let error = decode(&grey(20_001, 1, 8, &[])).unwrap_err();
        assert!(error.contains("20000 pixels a side"), "{error}");
        assert!(decode(&grey(3, 1, 8, &[0, 9, 9, 9])).is_ok());
    }

    /// Omniglot's own files: characters in folders of alphabets, black on white.
    #[test]
    fn nested_classes_of_one_bit_a_pixel_become_light_strokes_on_dark() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["Greek/character02/0_01.png", "Greek/character01/0_01.png", "Latin/character01/0_01.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, one_bit(105, 105, |x, _| !(51..54).contains(&x))).unwrap();
        }
        let opened = |invert: bool| {
            let params = [("depth".to_owned(), 2.into()), ("invert".to_owned(), invert.into())].into();
            open(&dir.path().display().to_string(), "val", &params, 0).unwrap()
        };
        let (plain, inverted) = (opened(false), opened(true));
        assert_eq!(plain.classes(), ["Greek/character01", "Greek/character02", "Latin/character01"]);
        assert_eq!((inverted.labels(), inverted.name(1)), (&[0, 1, 2][..], "Greek/character02/0_01.png".to_owned()));
        let image = plain.load(0).unwrap();
        assert_eq!((image.width, image.height, image.bytes[0], image.bytes[52 * 3]), (105, 105, 255, 0));
        // Each of 28 columns is made of its neighbours within 3.75 pixels.
        let small = square(&inverted.load(0).unwrap(), Filter::Bilinear, 28, 28);
        let row: Vec<u8> = small.chunks_exact(3).take(28).map(|p| p[0]).collect();
        assert!((100..=104).contains(&row[13]) && (100..=104).contains(&row[14]), "{row:?}");
        assert!(row[..11].iter().chain(&row[17..]).all(|v| *v == 0), "{row:?}");
    }

    #[test]
    fn a_jpeg_with_four_inks_is_decoded() {
        // A table with one code, of one bit, for "nothing".
        let table = |kind: u8| [&[0xff, 0xc4, 0, 20, kind, 1][..], &[0; 16][..]].concat();
        let frame = b"\xff\xc0\x00\x14\x08\x00\x08\x00\x08\x04\x01\x11\x00\x02\x11\x00\x03\x11\x00\x04\x11\x00";
        // One scan of all four inks, a block each.
        let scan = b"\xff\xda\x00\x0e\x04\x01\x00\x02\x00\x03\x00\x04\x00\x00\x3f\x00\x00\xff\xd9";
        let quantisation = [&b"\xff\xd8\xff\xdb\x00\x43\x00"[..], &[1; 64][..]].concat();
        let jpeg = [&quantisation[..], &frame[..], &table(0x00)[..], &table(0x10)[..], &scan[..]].concat();
        let image = decode(&jpeg).unwrap();
        assert_eq!((image.width, image.height, image.bytes.len()), (8, 8, 192));
        assert!(image.bytes.iter().all(|v| *v == image.bytes[0]), "{:?}", &image.bytes[..6]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(mut bytes in proptest::collection::vec(0u8.., 0..200), good: bool) {
            if good && bytes.len() > 2 {
                bytes[..2].copy_from_slice(b"\xff\xd8");
            }
            let _ = decode(&bytes);
        }
    }
}
