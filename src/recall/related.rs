//! Retrieval where a caption belongs to several images and an image to several captions.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::io::BufRead;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Recall;
use super::ranks::{Partner, count_ahead, pair_scores};
use super::report::table;
use crate::pairs::{PairReader, Position, not_utf8};
use crate::text_file::without_mark;
use crate::vectors::{Embeddings, check_scorable};
use crate::{Error, Result};

/// What stands beside every figure of this protocol.
pub const RELATED_PROTOCOL: &str =
    "Chinese-CLIP's protocol (N:M): not comparable with figures of the one-to-one protocol";
/// A caption's line may have this many bytes.
const LONGEST_LINE: usize = 1 << 20;

/// A caption of a test set in Chinese-CLIP's form, with the images that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caption {
    /// The line it stands on, from 1.
    pub line: u64,
    /// Its id. Numbers are taken by their digits, here and in `image_ids`.
    pub text_id: String,
    /// The caption.
    pub text: String,
    /// Ids of the images that count as found for it.
    pub image_ids: Vec<String>,
}

/// Reads `X_texts.jsonl` of a test set in Chinese-CLIP's form: a line a caption, each an object
/// `{"text_id": 1, "text": "...", "image_ids": [17, 4]}`.
///
/// ```
/// use ernie_vil::recall::CaptionReader;
/// let lines = r#"{"text_id": 1, "text": "一只猫", "image_ids": [17, "4"]}"#;
/// let captions = CaptionReader::new(lines.as_bytes()).collect::<Result<Vec<_>, _>>()?;
/// assert_eq!(captions[0].image_ids, ["17", "4"]);
/// # Ok::<(), ernie_vil::Error>(())
/// ```
///
/// A byte order mark in front and blank lines at the end are passed over.
///
/// # Errors
/// [`Error::Pairs`] names the line, and says what the file is where it is no text in UTF-8. After a line that is no
/// such object the next one can still be read; after one of more than 1 MiB, in a file that is no text, or
/// where the source fails ([`Error::Io`]), the iterator ends.
#[derive(Debug)]
pub struct CaptionReader<R> {
    lines: PairReader<R>,
    /// What was read behind blank lines, which were given as an error first.
    next: Option<Result<Caption>>,
}

impl<R: BufRead> CaptionReader<R> {
    /// Reads from the first line on.
    pub fn new(reader: R) -> Self {
        Self {
            lines: PairReader::new(reader)
                .with_max_line_bytes(LONGEST_LINE)
                .with_file_checks(),
            next: None,
        }
    }
}

impl<R: BufRead> Iterator for CaptionReader<R> {
    type Item = Result<Caption>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        let mut blank = None;
        loop {
            let read = match self.lines.next_line(caption) {
                // Blank lines at the end of a file are no captions.
                Ok(None) => return None,
                Ok(Some(Ok(Parsed::Blank(line)))) => {
                    blank.get_or_insert(line);
                    continue;
                }
                Ok(Some(Ok(Parsed::Caption(caption)))) => Ok(caption),
                Ok(Some(Err(error))) | Err(error) => Err(error),
            };
            let Some(line) = blank else { return Some(read) };
            self.next = Some(read);
            return Some(Err(Error::Pairs(format!(
                "line {line}, column 0: EOF while parsing a value: the line is blank and others follow, expected \
                 {EXPECTED}"
            ))));
        }
    }
}

/// What a line should be.
const EXPECTED: &str = "{\"text_id\": .., \"text\": \"..\", \"image_ids\": [..]}";

/// What stands on a line.
enum Parsed {
    Caption(Caption),
    /// Nothing, on the line of this number.
    Blank(u64),
}

fn caption(bytes: &[u8], start: Position) -> Result<Parsed> {
    let text = str::from_utf8(bytes).map_err(|error| not_utf8(bytes, start, error))?;
    let text = match start.offset {
        0 => without_mark(text),
        _ => text,
    };
    if text.trim().is_empty() {
        return Ok(Parsed::Blank(start.line()));
    }
    let line: Line = serde_json::from_str(text).map_err(|error| wrong_line(text, start.line(), &error))?;
    Ok(Parsed::Caption(Caption {
        line: start.line(),
        text_id: line.text_id.0,
        text: line.text,
        image_ids: line.image_ids.into_iter().map(|id| id.0).collect(),
    }))
}

/// What is wrong with a line that is no caption.
fn wrong_line(text: &str, number: u64, error: &serde_json::Error) -> Error {
    let end = text.floor_char_boundary(error.column());
    let message = error.to_string();
    // Its own line number is always 1.
    let what = message.rfind(" at line ").map_or(&*message, |at| &message[..at]);
    let surrogate = match what.ends_with("hex escape") {
        true => half_of_a_pair(&text[..end]),
        false => None,
    };
    let what = match surrogate {
        // In front stands the field, which is not the parser's.
        Some(escape) => format!(
            "{}{escape} is one half of a surrogate pair, expected both halves of a character or the character itself",
            what.split_once(": ")
                .map_or(String::new(), |(field, _)| format!("{field}: "))
        ),
        None => what.to_owned(),
    };
    let hint = match text.trim_start() {
        list if list.starts_with('[') => {
            "; the file seems to be one JSON list: `jq -c '.[]' OLD > NEW` writes it an object a line"
        }
        row if !row.starts_with('{') && row.contains('\t') => {
            "; the line has columns: is this the file of the images?"
        }
        "{" => {
            "; the file seems to be laid out over several lines: `jq -c . OLD > NEW` writes it an object a line"
        }
        _ => "",
    };
    Error::Pairs(format!(
        "line {number}, column {}: {what}, expected {EXPECTED}{hint}",
        text[..end].chars().count()
    ))
}

/// The last escape before a parser's error that is half of a surrogate pair.
fn half_of_a_pair(before: &str) -> Option<&str> {
    let escape = |at: usize| before.get(at..at + 6);
    let is_half = |escape: &&str| {
        u16::from_str_radix(&escape[2..], 16).is_ok_and(|unit| (0xd800..0xe000).contains(&unit))
    };
    // It may be the one before the escape at which the parser stopped.
    let escapes = before.rmatch_indices("\\u").take(2);
    escapes.filter_map(|(at, _)| escape(at)).find(is_half)
}

/// A line's object.
struct Line {
    text_id: Id,
    text: String,
    image_ids: Vec<Id>,
}

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LineVisitor;
        impl<'de> Visitor<'de> for LineVisitor {
            type Value = Line;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
                let (mut text_id, mut text, mut image_ids) = (None, None, None);
                while let Some(key) = map.next_key::<Cow<'de, str>>()? {
                    match &*key {
                        "text_id" => field("text_id", &mut text_id, &mut map)?,
                        "text" => field("text", &mut text, &mut map)?,
                        "image_ids" => field("image_ids", &mut image_ids, &mut map)?,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                let missing = A::Error::missing_field;
                Ok(Line {
                    text_id: text_id.ok_or_else(|| missing("text_id"))?,
                    text: text.ok_or_else(|| missing("text"))?,
                    image_ids: image_ids.ok_or_else(|| missing("image_ids"))?,
                })
            }
        }
        deserializer.deserialize_map(LineVisitor)
    }
}

/// Reads a field's value; an error says which field it is.
fn field<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    name: &'static str,
    slot: &mut Option<T>,
    map: &mut A,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(A::Error::duplicate_field(name));
    }
    let value = map.next_value();
    *slot = Some(value.map_err(|error| A::Error::custom(format_args!("{name}: {error}")))?);
    Ok(())
}

/// An id: a whole number or a string.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an id, a whole number or a string")
            }

            fn visit_u64<E>(self, id: u64) -> Result<Id, E> {
                Ok(Id(id.to_string()))
            }

            fn visit_i64<E>(self, id: i64) -> Result<Id, E> {
                Ok(Id(id.to_string()))
            }

            fn visit_str<E: serde::de::Error>(self, id: &str) -> Result<Id, E> {
                match id {
                    "" => Err(E::custom("an empty id")),
                    id => Ok(Id(id.to_owned())),
                }
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// Which captions belong to which images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relations {
    texts: usize,
    images: usize,
    /// Rows of captions and images, sorted and each once.
    pairs: Vec<(u32, u32)>,
    missing: Vec<String>,
}

impl Relations {
    /// Of captions and images in the order of their rows of vectors; `image_ids` has one id a row.
    ///
    /// An id that a caption names twice counts once, and one that no image has can never be found.
    ///
    /// # Errors
    /// [`Error::Scoring`] where two captions or two images have the same id.
    pub fn new<S: AsRef<str>>(captions: &[Caption], image_ids: &[S]) -> Result<Self> {
        let mut rows = HashMap::new();
        for (row, id) in (0u32..).zip(image_ids) {
            if let Some(before) = rows.insert(id.as_ref(), row) {
                return Err(Error::Scoring(format!(
                    "images {} and {} both have the id {:?}, expected each id once",
                    before + 1,
                    row + 1,
                    id.as_ref()
                )));
            }
        }
        let mut lines = HashMap::new();
        let (mut pairs, mut missing) = (Vec::new(), BTreeSet::new());
        for (text, caption) in (0u32..).zip(captions) {
            if let Some(before) = lines.insert(&*caption.text_id, caption.line) {
                return Err(Error::Scoring(format!(
                    "lines {before} and {} both have the text_id {:?}, expected each id once",
                    caption.line, caption.text_id
                )));
            }
            for id in &caption.image_ids {
                match rows.get(&**id) {
                    Some(&image) => pairs.push((text, image)),
                    None => {
                        missing.insert(id.clone());
                    }
                }
            }
        }
        pairs.sort_unstable();
        pairs.dedup();
        Ok(Self {
            texts: captions.len(),
            images: image_ids.len(),
            pairs,
            missing: missing.into_iter().collect(),
        })
    }

    /// Number of pairs of a caption and an image that belong together.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// Ids that captions name and no image has, sorted.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }
}

/// For each query the rank of the best candidate that belongs to it: 0 is a hit at 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelatedRanks {
    /// For each caption; none where it belongs to no image, which counts as a miss.
    pub text_to_image: Vec<Option<u32>>,
    /// For each image; none where it belongs to no caption, so that it is no query.
    pub image_to_text: Vec<Option<u32>>,
}

/// Ranks by Chinese-CLIP's protocol: a query's rank is that of the best candidate which belongs to it, by the inner
/// product in float32 of the vectors as they are, and candidates with the same score stand in their order.
///
/// Takes as long and as much memory as [`ranks`](super::ranks).
///
/// # Errors
/// [`Error::Scoring`] where the vectors are not as many as `relations` has captions and images, differ in
/// dimensions, hold values that are not finite, or are longer than 1e18; and where no caption belongs to an image.
///
/// ```
/// use ernie_vil::recall::{CaptionReader, RelatedReport, Relations, related_ranks};
/// use ernie_vil::vectors::Embeddings;
/// let lines = r#"{"text_id": 1, "text": "猫", "image_ids": [4]}
/// {"text_id": 2, "text": "一只猫", "image_ids": [4, 17]}"#;
/// let captions = CaptionReader::new(lines.as_bytes()).collect::<Result<Vec<_>, _>>()?;
/// let relations = Relations::new(&captions, &["17", "4", "8"])?;
/// let text = Embeddings::new(2, 2, vec![1.0, 0.0, 0.6, 0.8])?;
/// let image = Embeddings::new(3, 2, vec![1.0, 0.0, 0.8, 0.6, 0.0, 1.0])?;
/// let ranks = related_ranks(&text, &image, &relations)?;
/// assert_eq!(ranks.text_to_image, [Some(1), Some(0)]);
/// assert_eq!(ranks.image_to_text, [Some(1), Some(0), None]);
/// println!("{}", RelatedReport::new(&ranks)?.table());
/// # Ok::<(), ernie_vil::Error>(())
/// ```
pub fn related_ranks(text: &Embeddings, image: &Embeddings, relations: &Relations) -> Result<RelatedRanks> {
    check(text, image, relations).map_err(Error::Scoring)?;
    let scores = pair_scores(text, image, &relations.pairs);
    // Without a partner nothing is ahead; what is counted for such a query is not used.
    let nobody = Partner {
        score: f32::INFINITY,
        first: 0,
    };
    let (mut texts, mut images) = (vec![None; text.rows()], vec![None; image.rows()]);
    for (&(row, column), score) in relations.pairs.iter().zip(scores) {
        // The pairs are in order on either side, so of equal scores the first one stays.
        for (best, first) in [
            (&mut texts[row as usize], column),
            (&mut images[column as usize], row),
        ] {
            if best.is_none_or(|best: Partner| score > best.score) {
                *best = Some(Partner { score, first });
            }
        }
    }
    let known = |side: &[Option<Partner>]| -> Vec<_> {
        side.iter().map(|partner| partner.unwrap_or(nobody)).collect()
    };
    let counted = count_ahead(text, image, &known(&texts), &known(&images));
    let ranks = |side: Vec<Option<Partner>>, counts: Vec<u32>| {
        let all = side.into_iter().zip(counts);
        all.map(|(partner, count)| partner.map(|_| count)).collect()
    };
    Ok(RelatedRanks {
        text_to_image: ranks(texts, counted.text_to_image),
        image_to_text: ranks(images, counted.image_to_text),
    })
}

fn check(text: &Embeddings, image: &Embeddings, relations: &Relations) -> Result<(), String> {
    let (texts, images) = (text.rows(), image.rows());
    if (texts, images) != (relations.texts, relations.images) {
        return Err(format!(
            "{texts} text vectors and {images} image vectors, expected {} and {}, as there are captions and images",
            relations.texts, relations.images
        ));
    }
    if relations.pairs.is_empty() {
        return Err("no caption belongs to any of the images, so there is nothing to score".into());
    }
    if text.dimensions() != image.dimensions() {
        return Err(format!(
            "text vectors of {} dimensions and image vectors of {}, expected the same of both",
            text.dimensions(),
            image.dimensions()
        ));
    }
    if texts.max(images) > u32::MAX as usize {
        return Err(format!(
            "{} rows, expected at most {}",
            texts.max(images),
            u32::MAX
        ));
    }
    for (side, name) in [(text, "text"), (image, "image")] {
        for (row, vector) in side.iter().enumerate() {
            // A vector of zeros has a score with every other one, which is 0.
            if vector.iter().any(|&value| value != 0.0) {
                check_scorable(vector).map_err(|error| format!("{name} row {}: {error}", row + 1))?;
            }
        }
    }
    Ok(())
}

/// Scores of one direction of retrieval by Chinese-CLIP's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RelatedDirection {
    /// Captions, or images that at least one caption belongs to.
    pub queries: usize,
    /// Queries with a hit among the first 1, 5 and 10.
    pub hits: [usize; 3],
    /// The hits as shares of the queries, and their mean.
    #[serde(flatten)]
    pub recall: Recall,
}

impl RelatedDirection {
    fn new(queries: usize, ranks: impl Iterator<Item = u32> + Clone) -> Self {
        let hits = [1, 5, 10].map(|places| ranks.clone().filter(|&rank| rank < places).count());
        let [r1, r5, r10] = hits.map(|hits| hits as f64 / queries as f64);
        Self {
            queries,
            hits,
            recall: Recall::new(r1, r5, r10),
        }
    }
}

/// How well captions and images find each other by Chinese-CLIP's protocol. Nothing combines its two directions.
///
/// As JSON the shares stay shares: `{"protocol": "Chinese-CLIP's protocol (N:M): ..", "texts": .., "images": ..,
/// "text_to_image": {"queries": .., "hits": [.., .., ..], "r1": .., "r5": .., "r10": .., "mean": ..},
/// "image_to_text": {..}}`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RelatedReport {
    /// [`RELATED_PROTOCOL`].
    pub protocol: &'static str,
    /// Captions that were scored.
    pub texts: usize,
    /// Images that were scored.
    pub images: usize,
    /// Images found by their captions.
    pub text_to_image: RelatedDirection,
    /// Captions found by their images.
    pub image_to_text: RelatedDirection,
}

impl RelatedReport {
    /// Sums up the ranks of both directions.
    ///
    /// # Errors
    /// [`Error::Scoring`] where there is no query in a direction.
    pub fn new(ranks: &RelatedRanks) -> Result<Self> {
        let (texts, images) = (ranks.text_to_image.len(), ranks.image_to_text.len());
        let queries = ranks.image_to_text.iter().flatten().count();
        if texts == 0 || queries == 0 {
            return Err(Error::Scoring(format!(
                "{texts} captions and {queries} images that one belongs to, expected at least 1 of each"
            )));
        }
        Ok(Self {
            protocol: RELATED_PROTOCOL,
            texts,
            images,
            text_to_image: RelatedDirection::new(texts, ranks.text_to_image.iter().flatten().copied()),
            image_to_text: RelatedDirection::new(queries, ranks.image_to_text.iter().flatten().copied()),
        })
    }

    /// The protocol's name, and below it a table in percent like that of [`Report`](super::Report).
    pub fn table(&self) -> String {
        let cells =
            |direction: &RelatedDirection| direction.recall.percent().map(|figure| format!("{figure:.2}"));
        let lines = [
            ("Text2Image", cells(&self.text_to_image)),
            ("Image2Text", cells(&self.image_to_text)),
        ];
        format!("{RELATED_PROTOCOL}\n{}", table(&lines))
    }

    /// The report as indented JSON, with a line feed at its end.
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self).expect("plain data serialises");
        json.push('\n');
        json
    }
}
