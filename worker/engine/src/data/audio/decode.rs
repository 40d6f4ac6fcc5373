//! WAV and FLAC to numbers. Formats that lose something are not read: what their decoders make of a file differs in its
//! last bits from machine to machine.

use std::io::Cursor;

use symphonia::core::{
    audio::{AudioBufferRef, SampleBuffer},
    codecs::{CODEC_TYPE_NULL, DecoderOptions},
    errors::Error as Symphonia,
    formats::FormatOptions,
    io::{MediaSourceStream, MediaSourceStreamOptions},
    meta::MetadataOptions,
    probe::Hint,
};

use super::{super::caught::caught, Clip};

/// Longest file, in seconds.
const MAX_SECONDS: u64 = 600;
/// What makes a file that can be read of one that cannot.
const CONVERT: &str = "`ffmpeg -i FILE -c:a pcm_s16le NEW.wav` makes one that can be read";
/// Rates that files may have.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=192_000;

/// Decodes a WAV or FLAC file, the mean of its channels.
///
/// # Errors
/// Says in words what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Clip, String> {
    caught(|| read(bytes))
}

fn read(bytes: &[u8]) -> Result<Clip, String> {
    if !(bytes.starts_with(b"RIFF") || bytes.starts_with(b"fLaC")) {
        return Err(format!("it is neither WAV nor FLAC, or not from its first byte on: {CONVERT}"));
    }
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes.to_vec())), MediaSourceStreamOptions::default());
    let (format, metadata) = (FormatOptions::default(), MetadataOptions::default());
    let probed = symphonia::default::get_probe().format(&Hint::new(), source, &format, &metadata);
    let mut reader = probed.map_err(|e| format!("{e}: {CONVERT}"))?.format;
    let track = reader.tracks().iter().find(|t| t.codec_params.codec != CODEC_TYPE_NULL).ok_or("it has no sound")?;
    let (id, params) = (track.id, track.codec_params.clone());
    let rate = params.sample_rate.ok_or("it does not say its rate")?;
    if !RATES.contains(&rate) {
        return Err(format!("its rate is {rate} Hz, and {} to {} can be read", RATES.start(), RATES.end()));
    }
    let most = u64::from(rate) * MAX_SECONDS;
    let long = || format!("it lasts longer than {} minutes: cut it into clips", MAX_SECONDS / 60);
    if let Some(n) = params.n_frames.filter(|n| *n > most) {
        // A program that wrote to a pipe could not go back to its beginning and say how much there is.
        let claims = bytes.starts_with(b"RIFF") && n > bytes.len() as u64;
        return Err(if claims { format!("its header claims more than it has: {CONVERT}") } else { long() });
    }
    let decoder = symphonia::default::get_codecs().make(&params, &DecoderOptions::default());
    let mut decoder = decoder.map_err(|e| format!("{e}: {CONVERT}"))?;
    let mut samples: Vec<f32> = Vec::new();
    loop {
        let packet = match reader.next_packet() {
            Ok(packet) if packet.track_id() == id => packet,
            Ok(_) => continue,
            Err(Symphonia::IoError(e)) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e.to_string()),
        };
        mean_of_channels(&decoder.decode(&packet).map_err(|e| e.to_string())?, &mut samples);
        if samples.len() as u64 > most {
            return Err(long());
        }
    }
    match params.n_frames {
        Some(n) if (samples.len() as u64) < n => {
            Err(format!("it is cut off: {} of {n} samples are there", samples.len()))
        }
        _ if samples.is_empty() => Err("it has no samples".into()),
        _ if samples.iter().any(|v| !v.is_finite()) => Err("it has samples that are no numbers".into()),
        _ => Ok(Clip { rate, samples }),
    }
}

fn mean_of_channels(decoded: &AudioBufferRef<'_>, out: &mut Vec<f32>) {
    let channels = decoded.spec().channels.count().max(1);
    let mut buffer = SampleBuffer::<f32>::new(decoded.capacity() as u64, *decoded.spec());
    buffer.copy_interleaved_ref(decoded.clone());
    out.extend(buffer.samples().chunks_exact(channels).map(|all| all.iter().sum::<f32>() / channels as f32));
}

#[cfg(test)]
mod tests {
    use super::{super::testing::wav, *};

    /// 40 samples of a quarter, as `flac` writes them.
    const FLAC: &[u8] =
        b"fLaC\x00\x00\x00\x22\x10\x00\x10\x00\x00\x00\x0c\x00\x00\x0c\x01\xf4\x00\xf0\x00\x00\x00(b\xb4\
        \xdc\xf2^DU\xafUeP\xa5\xee\n%\xae\x84\x00\x00( \x00\x00\x00reference libFLAC 1.4.3 20230623\x00\x00\x00\x00\xff\
        \xf8d\x08\x00'\x16\x01\x00\t\xe2C";

    #[test]
    fn wav_and_flac_are_read_and_channels_are_averaged() {
        let clip = decode(FLAC).unwrap();
        assert_eq!(clip, Clip { rate: 8_000, samples: vec![0.25; 40] });
        let stereo = decode(&wav(16_000, 2, &[16_384, 0, -32_768, 0])).unwrap();
        assert_eq!(stereo, Clip { rate: 16_000, samples: vec![0.25, -0.5] });
    }

    #[test]
    fn a_file_that_is_cut_off_or_no_sound_or_too_long_is_refused_in_words() {
        let whole = wav(8_000, 1, &[7; 2_000]);
        assert_eq!(decode(&whole).unwrap().samples.len(), 2_000);
        for (bytes, says) in [
            (whole[..3_000].to_vec(), "cut off"),
            (whole[..44].to_vec(), ""),
            (FLAC[..90].to_vec(), ""),
            (b"ID3\x04 a song".to_vec(), "neither WAV nor FLAC"),
            (wav(8_000, 1, &[]), ""),
            (wav(500, 1, &[7; 100]), "rate is 500 Hz"),
            (wav(1_000, 1, &vec![0; 601_000]), "longer than 10 minutes"),
        ] {
            let error = decode(&bytes).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        // A header alone can claim ten hours, and does where it was written to a pipe; ffmpeg and sox say so much then.
        let ten_hours = 8_000u32 * 2 * 36_000;
        for [riff, data] in [[ten_hours + 36, ten_hours], [u32::MAX, u32::MAX], [0x7fff_ffff, 0x7fff_ffdb]] {
            let mut long = whole.clone();
            long[4..8].copy_from_slice(&riff.to_le_bytes());
            long[40..44].copy_from_slice(&data.to_le_bytes());
            let error = decode(&long).unwrap_err();
            assert!(error.contains("its header claims more than it has: `ffmpeg"), "{error}");
        }
    }

    /// Runs itself, to see what a process with such a file writes.
    #[test]
    fn a_file_that_trips_the_decoder_is_told_once_and_without_a_backtrace() {
        const NAME: &str =
            "data::audio::decode::tests::a_file_that_trips_the_decoder_is_told_once_and_without_a_backtrace";
        const INSIDE: &str = "TL_TEST_TRIPPED_DECODER";
        if std::env::var_os(INSIDE).is_some() {
            let mut silent = wav(8_000, 1, &[7; 100]);
            silent[24..28].fill(0);
            assert_eq!(decode(&silent), Err("it contradicts itself".into()), "a rate of nothing");
            return;
        }
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        let output = command.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("1 passed") && !said.contains("panicked"), "{said}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(mut bytes in proptest::collection::vec(0u8.., 0..300), flac: bool, from in 0usize..98) {
            let start = if flac { FLAC[..from].to_vec() } else { wav(8_000, 1, &[1; 27])[..from].to_vec() };
            bytes.splice(0..0, start);
            let _ = decode(&bytes);
        }
    }
}
