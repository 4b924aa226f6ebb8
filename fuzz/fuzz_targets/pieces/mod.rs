//! What the targets of the codecs share: bytes that say how they are cut, and decoders that are shown them so.

use shardwise::framing::{Decoder, Encoder};

/// A case: two numbers to choose codec and limit by, the sizes of pieces, and the bytes.
pub struct Case<'a> {
    pub choice: u8,
    pub limit: usize,
    pub pieces: &'a [u8],
    pub bytes: &'a [u8],
}

impl<'a> Case<'a> {
    pub fn new(data: &'a [u8]) -> Option<Self> {
        let (&[choice, limit, count], rest) = data.split_first_chunk::<3>()?;
        let (pieces, bytes) = rest.split_at_checked((count % 8).into())?;
        Some(Case { choice, limit: limit.into(), pieces, bytes })
    }
}

/// The frames, what was wrong, and how many bytes are left.
pub type Outcome<E> = (Vec<Vec<u8>>, Option<E>, usize);

/// Shows `bytes` to `decoder` in growing pieces, as a connection does.
pub fn decode<D: Decoder>(
    mut decoder: D,
    bytes: &[u8],
    pieces: impl Iterator<Item = usize>,
) -> Outcome<D::Error> {
    let (mut frames, mut begin, mut come) = (Vec::new(), 0, 0);
    for piece in pieces {
        come = bytes.len().min(come + piece);
        loop {
            let shown = &bytes[begin..come];
            match decoder.decode(shown) {
                Ok(Some(found)) => {
                    assert!(found.used > 0 && found.used <= shown.len(), "{found:?} of {}", shown.len());
                    assert!(found.frame.end <= found.used, "{found:?}");
                    frames.push(shown[found.frame].to_vec());
                    begin += found.used;
                }
                Ok(None) => {
                    assert!(
                        shown.len() < decoder.frame_bytes_max(),
                        "it asks for more than its longest frame"
                    );
                    break;
                }
                Err(error) => return (frames, Some(error), bytes.len() - begin),
            }
        }
        if come == bytes.len() {
            break;
        }
    }
    (frames, None, bytes.len() - begin)
}

/// Checks that the pieces make no difference, and that what was read is sent and read as the same again.
pub fn check<C>(codec: &C, case: &Case<'_>) -> Outcome<<C as Decoder>::Error>
where
    C: Decoder + Encoder + Clone,
    <C as Decoder>::Error: PartialEq,
{
    let whole = decode(codec.clone(), case.bytes, std::iter::once(case.bytes.len()));
    let single = decode(codec.clone(), case.bytes, std::iter::repeat(1));
    assert_eq!(single, whole, "byte by byte");
    let sizes = case.pieces.iter().map(|size| usize::from(*size) % 40 + 1);
    let pieces = decode(codec.clone(), case.bytes, sizes.chain([3, 1, 7]).cycle());
    assert_eq!(pieces, whole, "in pieces");

    let mut output = Vec::new();
    for frame in &whole.0 {
        codec.encode(frame, &mut output).expect("what was read can be sent");
    }
    // Any other bytes are sent so that they are read as they are, or not at all.
    let other = codec.encode(case.bytes, &mut output).is_ok().then_some(case.bytes);
    let again = decode(codec.clone(), &output, std::iter::once(output.len()));
    let expected: Vec<&[u8]> = whole.0.iter().map(Vec::as_slice).chain(other).collect();
    assert_eq!((again.0, again.1, again.2), (expected.iter().map(|frame| frame.to_vec()).collect(), None, 0));
    whole
}
