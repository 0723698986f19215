//! `ernie-vil serve`, the real process over real connections: a module for each subject.

mod access;
mod answers;
mod connections;
mod errors;
mod files;
mod index;
mod lifetime;
mod load;
