//! The vectors of labels that were asked for of late: the same labels come back with every picture that is
//! classified.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// Bytes of all vectors that are kept, about.
const KEPT: usize = 16 << 20;
/// What an entry takes beside its values.
const OVERHEAD: usize = 128;

/// A label in its templates.
pub type Key = [u8; 32];

/// What a label became.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    pub vector: Arc<[f32]>,
    /// Tokens of its captions, one for each template.
    pub tokens: usize,
}

/// The key of a label in these templates, as a function of the label.
pub fn keys(templates: &[String]) -> impl Fn(&str) -> Key + use<> {
    let mut all = Sha256::new();
    for template in templates {
        all.update((template.len() as u64).to_le_bytes());
        all.update(template);
    }
    let templates = all.finalize();
    move |label| {
        let key = Sha256::new().chain_update(templates).chain_update(label);
        key.finalize().into()
    }
}

/// Labels in two generations: when the young one is full it takes the place of the old one, whose labels are
/// forgotten unless they were asked for in the meantime.
pub struct Labels {
    most: usize,
    generations: Mutex<[HashMap<Key, Label>; 2]>,
}

impl Labels {
    /// For vectors of so many values.
    pub fn new(dimensions: usize) -> Self {
        Self {
            most: KEPT / 2 / (dimensions * 4 + OVERHEAD),
            generations: Mutex::default(),
        }
    }

    pub fn get(&self, key: &Key) -> Option<Label> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(label) = generations[0].get(key) {
            return Some(label.clone());
        }
        let label = generations[1].remove(key)?;
        insert(&mut generations, self.most, *key, label.clone());
        Some(label)
    }

    pub fn insert(&self, key: Key, label: Label) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        insert(&mut generations, self.most, key, label);
    }
}

fn insert(generations: &mut [HashMap<Key, Label>; 2], most: usize, key: Key, label: Label) {
    if generations[0].len() >= most {
        generations[1] = std::mem::take(&mut generations[0]);
    }
    generations[0].insert(key, label);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kept_while_they_are_asked_for_and_no_more_than_there_may_be() {
        let labels = Labels::new(1024);
        let label = |i: usize| Label {
            vector: vec![i as f32; 1024].into(),
            tokens: i,
        };
        let key = keys(&["{}".into()]);
        for i in 0..20_000 {
            labels.insert(key(&i.to_string()), label(i));
            assert_eq!(labels.get(&key("0")), Some(label(0)));
        }
        assert_eq!(labels.get(&key("19999")), Some(label(19_999)));
        assert_eq!(labels.get(&key("1")), None);
        let kept: usize = labels.generations.lock().unwrap().iter().map(HashMap::len).sum();
        assert!(kept * (1024 * 4 + OVERHEAD) <= KEPT, "{kept}");
    }

    #[test]
    fn other_templates_are_other_keys() {
        let list = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let lists = [
            list(&["{}"]),
            list(&["{}", "{}"]),
            list(&["{}a"]),
            list(&["{}a", "b{}"]),
            list(&["{}ab{}"]),
        ];
        let all: std::collections::HashSet<Key> = (lists.iter())
            .flat_map(|list| ["", "a", "b"].map(keys(list)))
            .collect();
        assert_eq!(all.len(), 15);
    }
}
