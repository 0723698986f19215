//! Retrieval scores: embeddings to ranks, ranks to recall, recall beside published figures.
//!
//! The protocol of [`ranks`] is the original's, one to one: row i's caption and row i's image are the only true
//! pair. A query's rank is the number of candidates that score strictly higher than its partner, so
//! a tie counts as a hit. [`related_ranks`] is Chinese-CLIP's, N:M: a caption may belong to several images and an
//! image to several captions, and the best of them counts. The two give other figures for the same images.
//!
//! ```
//! use ernie_vil::recall::{Options, Report, ranks};
//! use ernie_vil::vectors::Embeddings;
//! let text = Embeddings::new(2, 2, vec![1.0, 0.0, 0.6, 0.8])?;
//! let image = Embeddings::new(2, 2, vec![0.8, 0.6, 1.0, 0.0])?;
//! let ranks = ranks(&text, &image, Options::default())?;
//! assert_eq!(ranks.text_to_image, [1, 1]);
//! let report = Report::new(&ranks)?;
//! assert_eq!(report.text_to_image.recall.r1, 0.0);
//! assert_eq!(report.text_to_image.recall.r5, 1.0);
//! println!("{}", report.table());
//! # Ok::<(), ernie_vil::Error>(())
//! ```

mod device;
mod published;
mod ranks;
mod related;
mod report;

pub use device::ranks_on;
pub use published::{TestSet, comparison, published};
pub use ranks::{Options, Ranks, ranks};
pub use related::{
    Caption, CaptionReader, RELATED_PROTOCOL, RelatedDirection, RelatedRanks, RelatedReport, Relations,
    related_ranks,
};
pub use report::{Direction, Figures, Recall, Report};
