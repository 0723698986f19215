//! What the binary does with the files it is given: inputs that are outputs, outputs that are there already,
//! streams, and files that shrink while they are read.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{Folder, failure, finish, golden, make_fifo, read_golden, remarks, repository, success};

/// A command that takes longer than this waits for something that will not come.
const LONGEST: Duration = Duration::from_secs(120);

impl Folder {
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn link(&self, to: &str, name: &str) {
        symlink(to, self.path(name)).unwrap();
    }

    fn hard_link(&self, to: &str, name: &str) {
        fs::hard_link(self.path(to), self.path(name)).unwrap();
    }

    /// The binary as a command in the folder, whose output is read.
    fn piped(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a command line, whose words have no blanks.
    fn run(&self, line: &str) -> Output {
        self.run_with(line, Stdio::null())
    }

    fn run_with(&self, line: &str, stdin: Stdio) -> Output {
        let words: Vec<&str> = line.split(' ').collect();
        let output = finish(self.piped(&words).stdin(stdin).spawn().unwrap(), LONGEST);
        // There is no panic in them.
        remarks(&output);
        output
    }

    fn success(&self, line: &str) -> Vec<u8> {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", remarks(&output));
        output.stdout
    }

    /// The error with which a command line fails.
    fn failure(&self, line: &str) -> String {
        failure(&self.run(line))
    }

    /// A FIFO, and a thread that writes `bytes` to whoever opens it first.
    fn fifo(&self, name: &str, bytes: Vec<u8>) -> JoinHandle<()> {
        let path = self.path(name);
        let _ = fs::remove_file(&path);
        make_fifo(&path);
        std::thread::spawn(move || {
            let mut fifo = OpenOptions::new().write(true).open(path).unwrap();
            // A reader that refuses what it has seen does not read the rest.
            let _ = fifo.write_all(&bytes);
        })
    }
}

fn join(writers: impl IntoIterator<Item = JoinHandle<()>>) {
    for writer in writers {
        writer.join().unwrap();
    }
}

fn convert(folder: &Folder, name: &str) {
    let mut convert = crate::support::convert("tiny", &folder.path(name));
    success(&convert.output().unwrap());
}

#[test]
fn embed_writes_over_no_input() {
    let folder = Folder::with_pairs();
    let before = folder.read("a.tsv");
    folder.link("a.tsv", "link.tsv");
    folder.hard_link("a.tsv", "hard.tsv");
    fs::create_dir(folder.path("sub")).unwrap();
    folder.link("../sub/../link.tsv", "sub/far.tsv");
    // Names that are made of the output's.
    for derived in [
        "v.part",
        "v.rows",
        "v.rows.json",
        "v.rows.json.part",
        "v.skipped.tsv",
        "w.text.npy",
        "w.image.npy.part",
        "w.ids.txt",
    ] {
        folder.link("a.tsv", derived);
    }
    let names = folder.names();
    for (input, output) in [
        ("a.tsv", "a.tsv"),
        ("a.tsv", "./sub/../a.tsv"),
        ("a.tsv", "link.tsv"),
        ("link.tsv", "a.tsv"),
        ("a.tsv", "hard.tsv"),
        ("hard.tsv", "sub/far.tsv"),
        ("a.tsv", "v"),
        ("a.tsv", "w.npy"),
    ] {
        for more in ["", " --overwrite", " --resume", " --resume --overwrite"] {
            let error = folder.failure(&format!("embed -i {input} -o {output} --on-error skip{more}"));
            assert!(error.contains("is the same file as the input"), "{error}");
            assert!(
                folder.read("a.tsv") == before && folder.names() == names,
                "{error}"
            );
        }
    }
    // By the name of a file that is open.
    for output in ["a.tsv", "link.tsv", "v"] {
        let stdin = File::open(folder.path("a.tsv")).unwrap();
        let line = format!("embed -i /dev/stdin -o {output} --on-error skip --overwrite");
        let error = failure(&folder.run_with(&line, stdin.into()));
        assert!(
            error.contains("is the same file as the input /dev/stdin"),
            "{error}"
        );
        assert_eq!(folder.read("a.tsv"), before);
    }
    // A model's files are inputs, too.
    convert(&folder, "model");
    let vocab = folder.read("model/vocab.txt");
    folder.hard_link("model/vocab.txt", "words");
    for output in ["model/vocab.txt", "words"] {
        let error = folder.failure(&format!("embed -m model -i a.tsv -o {output} --overwrite"));
        assert!(
            error.contains("same file as the input model/vocab.txt"),
            "{error}"
        );
        assert_eq!(folder.read("model/vocab.txt"), vocab);
    }
}

#[test]
fn a_run_configuration_names_inputs_and_outputs_too() {
    let folder = Folder::with_pairs();
    let before = folder.read("a.tsv");
    let model = |suffix: &str| golden(format!("models/tiny{suffix}")).display().to_string();
    let config = format!(
        "device: cpu\ninfer_batch_size: 4\nmax_text_seqlen: 16\nvocab_file: {}\ntext_model_config: {}\n\
         image_model_config: {}\ntest_file: a.tsv\noutput_file: OUT\ninit_from_params: {}\npad_token: 0\ncls_token: \
         1\nsep_token: 2\n",
        golden("vocab_tiny.txt").display(),
        model("_text_config.json"),
        model("_vision_config.json"),
        model(".pdparams"),
    );
    folder.write("own.yaml", config.replace("OUT", "own.yaml"));
    folder.write("in.yaml", config.replace("OUT", "a.tsv"));
    for name in ["own.yaml", "in.yaml"] {
        let error = folder.failure(&format!("embed --config {name} --overwrite"));
        assert!(error.contains("is the same file as the input"), "{error}");
    }
    assert_eq!(folder.read("a.tsv"), before);
    folder.write("good.yaml", config.replace("OUT", "v.out"));
    let made = {
        folder.success("embed --config good.yaml");
        folder.read("v.out")
    };
    let error = folder.failure("embed --config good.yaml");
    assert!(
        error.contains("v.out is there already; --overwrite replaces it"),
        "{error}"
    );
    folder.write("v.out", "other");
    folder.success("embed --config good.yaml --overwrite");
    assert_eq!(folder.read("v.out"), made);
}

#[test]
fn embed_replaces_what_is_there_only_when_it_is_told_to() {
    let folder = Folder::with_pairs();
    for (name, output) in [
        ("v.out", "v.out"),
        ("v.safetensors", "v.safetensors"),
        ("w.image.npy", "w.npy"),
        ("w.ids.txt", "w.npy"),
        ("x.skipped.tsv", "x"),
    ] {
        folder.write(name, "mine");
        let line = format!("embed -i a.tsv -o {output} --on-error skip");
        for more in ["", " --resume"] {
            let error = folder.failure(&format!("{line}{more}"));
            assert!(
                error.ends_with(&format!("{name} is there already; --overwrite replaces it")),
                "{error}"
            );
            assert_eq!(folder.read(name), b"mine");
        }
        let words: Vec<&str> = line.split(' ').collect();
        let run = folder.piped(&words).env("ERNIE_VIL_OVERWRITE", "1").output();
        assert!(run.as_ref().unwrap().status.success(), "{run:?}");
        assert!(fs::read(folder.path(name)).map_or(true, |bytes| bytes != b"mine"));
        for name in folder.names() {
            assert!(!name.ends_with(".rows") && !name.ends_with(".part"), "{name}");
            if name != "a.tsv" {
                fs::remove_file(folder.path(&name)).unwrap();
            }
        }
    }
    // Rows of the same name that no run of ours made.
    folder.write("v.rows", "mine");
    let error = folder.failure("embed -i a.tsv -o v");
    assert!(
        error.contains("v.rows is there already; --overwrite replaces it"),
        "{error}"
    );
    assert_eq!(folder.read("v.rows"), b"mine");
    // What is no file is never replaced, and that is said before anything is computed.
    fs::create_dir(folder.path("folder")).unwrap();
    for output in ["folder", "/dev/null", "/dev/stdout"] {
        let error = folder.failure(&format!("embed -i a.tsv -o {output} --overwrite"));
        assert!(
            error.contains("is not a plain file, so it is not replaced"),
            "{error}"
        );
    }
    // Nothing is left of a run that failed before its first row.
    folder.write("bad.tsv", "x\t1\tAAAA\n");
    folder.failure("embed -i bad.tsv -o y");
    let left: Vec<String> = folder
        .names()
        .into_iter()
        .filter(|name| name.starts_with('y'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn convert_loses_neither_its_inputs_nor_what_is_not_its_own() {
    let folder = Folder::new();
    convert(&folder, "model");
    let weights = folder.read("model/image.safetensors");
    folder.link("model", "link");
    // The folder that it reads, by every name.
    for output in ["model", "model/", "./model", "link", "model/../model"] {
        let error = folder.failure(&format!(
            "convert --model model -o {output} --dtype int8 --overwrite"
        ));
        assert!(error.contains("is the same folder as the input"), "{error}");
        assert!(folder.read("model/image.safetensors") == weights);
    }
    // A checkpoint in the folder that would be replaced.
    for file in [".pdparams", "_text_config.json", "_vision_config.json"] {
        let name = format!("models/tiny{file}");
        fs::copy(golden(&name), folder.path("model").join(format!("tiny{file}"))).unwrap();
    }
    let line = format!(
        "convert --weights model/tiny.pdparams --text-config model/tiny_text_config.json --image-config \
         model/tiny_vision_config.json --vocab {} -o OUT --overwrite",
        golden("vocab_tiny.txt").display()
    );
    for output in ["model", "link"] {
        let error = folder.failure(&line.replace("OUT", output));
        assert!(
            error.contains("would be replaced and holds the input model/tiny"),
            "{error}"
        );
    }
    // Others' files in it.
    let error = folder.failure(&format!(
        "convert --model {} -o model --overwrite",
        repository("models/scenes").display()
    ));
    assert!(
        error.contains("model also holds \"tiny.pdparams\", which is no part of a model folder"),
        "{error}"
    );
    fs::create_dir(folder.path("hub")).unwrap();
    folder.write("hub/config.json", "{}");
    let error = folder.failure("convert --model model -o hub --overwrite");
    assert!(
        error.contains("hub is not a model folder, so it is not replaced"),
        "{error}"
    );
    // A copy that its user keeps under the name that a folder has while another takes its place.
    folder.success("convert --model model -o packed --dtype int8");
    fs::rename(folder.path("packed"), folder.path("packed.old")).unwrap();
    let error = folder.failure("convert --model model -o packed --dtype int8");
    assert!(error.contains("packed.old is in the way"), "{error}");
    assert!(folder.path("packed.old/manifest.json").exists());
    fs::rename(folder.path("packed.old"), folder.path("packed")).unwrap();
    let error = folder.failure("convert --model model -o packed --dtype int8");
    assert!(
        error.contains("packed is there already; --overwrite replaces it"),
        "{error}"
    );
    folder.success("convert --model model -o packed/ --dtype f16 --overwrite");
    assert!(!folder.path("packed.old").exists() && !folder.path("packed.part").exists());
    folder.success("info --model packed --verify");
}

#[test]
fn an_index_is_none_of_the_inputs() {
    let folder = Folder::new();
    fs::create_dir(folder.path("pictures")).unwrap();
    for name in ["r00.jpg", "r05.jpg"] {
        fs::copy(
            golden(format!("images/{name}")),
            folder.path("pictures").join(name),
        )
        .unwrap();
    }
    convert(&folder, "model");
    folder.link("pictures/r00.jpg", "link");
    folder.hard_link("pictures/r00.jpg", "hard");
    folder.link("pictures/r05.jpg", "part.part");
    folder.hard_link("pictures/r05.jpg", "log.log");
    folder.hard_link("pictures/r05.jpg", "lock.lock");
    let before = [folder.read("pictures/r00.jpg"), folder.read("pictures/r05.jpg")];
    for (index, what) in [
        ("pictures/r00.jpg", "picture"),
        ("link", "picture"),
        ("hard", "picture"),
        ("part", "picture"),
        ("log", "picture"),
        ("lock", "picture"),
        ("model/config.json", "input"),
    ] {
        let error = folder.failure(&format!(
            "search -m model --images pictures --text 猫 --index {index}"
        ));
        assert!(
            error.contains(&format!("is the same file as the {what}")),
            "{error}"
        );
        assert_eq!(
            before,
            [folder.read("pictures/r00.jpg"), folder.read("pictures/r05.jpg")]
        );
    }
    #[cfg(feature = "serve")]
    for index in ["model/image.safetensors", "model/config.json"] {
        let error = folder.failure(&format!("serve -m model --listen 127.0.0.1:0 --index {index}"));
        assert!(error.contains("is the same file as the input"), "{error}");
    }
    // The index itself may lie among the pictures.
    for _ in 0..2 {
        let printed =
            folder.success("search --images pictures --image pictures/r05.jpg --index pictures/index");
        assert!(String::from_utf8(printed).unwrap().contains("r05.jpg"));
    }
}

#[test]
#[cfg(feature = "train")]
fn train_replaces_what_is_there_only_when_it_is_told_to() {
    let folder = Folder::new();
    let config = |output: &str, train_file: &str| {
        format!(
            "name: small\noutput: {output}\ntrain_file: {train_file}\nmodel:\n  vocab_file: {}\n  max_text_tokens: 16\n  \
             image: {{image_size: 32, patch_size: 16, width: 16, depth: 1, heads: 2, mlp_width: 32, epsilon: 1.0e-6}}\n  \
             text: {{vocab_size: 2000, max_positions: 16, width: 16, depth: 1, heads: 2, query_head_width: 8, \
             value_head_width: 8, mlp_width: 32, activation: gelu, epsilon: 1.0e-5}}\nbatch_size: 16\nsteps: 2\n\
             learning_rate: 1.0e-3\n",
            golden("vocab_tiny.txt").display()
        )
    };
    let pairs = golden("coco_cn_style.tsv").display().to_string();
    folder.write("c.yaml", config("run", &pairs));
    fs::create_dir(folder.path("run")).unwrap();
    // One after the other is in the way.
    for name in ["metrics.jsonl", "curves.svg"] {
        folder.write(&format!("run/{name}"), "mine");
        let error = folder.failure("train --config c.yaml");
        assert!(
            error.contains(&format!("run/{name} is there already; --overwrite replaces it")),
            "{error}"
        );
        assert_eq!(folder.read(&format!("run/{name}")), b"mine");
        fs::remove_file(folder.path("run").join(name)).unwrap();
    }
    fs::create_dir(folder.path("run/model")).unwrap();
    folder.write("run/model/novel.txt", "mine");
    let error = folder.failure("train --config c.yaml --overwrite");
    assert!(
        error.contains("run/model is not a model folder, so it is not replaced"),
        "{error}"
    );
    fs::remove_dir_all(folder.path("run/model")).unwrap();
    folder.success("train --config c.yaml");
    let first = folder.read("run/model/image.safetensors");
    let error = folder.failure("train --config c.yaml");
    assert!(
        error.contains("run/checkpoint is there already; --resume goes on"),
        "{error}"
    );
    folder.success("train --config c.yaml --overwrite");
    assert!(folder.read("run/model/image.safetensors") == first);
    // The pairs under a name that the run has, and a model that it would replace.
    fs::create_dir(folder.path("other")).unwrap();
    fs::copy(&pairs, folder.path("other/metrics.jsonl")).unwrap();
    folder.write("d.yaml", config("other", "other/metrics.jsonl"));
    let error = folder.failure("train --config d.yaml --overwrite");
    assert!(
        error.contains("is the same file as the input other/metrics.jsonl"),
        "{error}"
    );
    let fresh = config("run", &pairs);
    let (start, end) = (fresh.find("model:").unwrap(), fresh.find("batch_size").unwrap());
    folder.write(
        "e.yaml",
        format!("{}init_from: run/model\n{}", &fresh[..start], &fresh[end..]),
    );
    let error = folder.failure("train --config e.yaml --overwrite");
    assert!(
        error.contains("run/model would be replaced and is the same folder as the input"),
        "{error}"
    );
    assert!(folder.read("run/model/image.safetensors") == first);
}

#[test]
fn nothing_is_printed_into_an_input() {
    let folder = Folder::with_pairs();
    let before = folder.read("a.tsv");
    let append = || {
        OpenOptions::new()
            .append(true)
            .open(folder.path("a.tsv"))
            .unwrap()
    };
    let stdin = || File::open(folder.path("a.tsv")).unwrap();
    for args in [
        &["tokenize", "a.tsv"][..],
        &["tokenize"],
        &["eval", "-i", "a.tsv"],
        &["score", "a.tsv"],
    ] {
        let child = folder
            .piped(args)
            .stdin(stdin())
            .stdout(append())
            .spawn()
            .unwrap();
        let error = failure(&finish(child, LONGEST));
        assert!(
            error.contains("standard output goes to the same file as the input"),
            "{error}"
        );
        assert_eq!(folder.read("a.tsv"), before);
    }
}

/// Results may lie beside a model's files.
#[test]
fn a_model_folder_takes_results() {
    let folder = Folder::with_pairs();
    convert(&folder, "model");
    for _ in 0..2 {
        let file = File::create(folder.path("model/info.json")).unwrap();
        let command = folder
            .piped(&["info", "-m", "model", "--json"])
            .stdout(file)
            .status();
        assert!(command.unwrap().success());
        folder.success("embed -m model -i a.tsv -o model/vectors.out --overwrite");
    }
}

/// Every input that is read from its beginning to its end may be a pipe.
#[test]
fn streams_give_what_files_give() {
    let folder = Folder::with_pairs();
    let pairs = folder.read("a.tsv");
    let table = folder.success("eval -i a.tsv");
    folder.success("embed -i a.tsv -o file.safetensors");
    folder.success("embed -i a.tsv -o file.out");
    folder.success("embed -i a.tsv -o file.npy");
    let vectors = |name: &str| folder.read(name);
    // By a FIFO.
    let writer = folder.fifo("pipe", pairs.clone());
    assert_eq!(folder.success("eval -i pipe"), table);
    writer.join().unwrap();
    let writer = folder.fifo("pipe", pairs.clone());
    folder.success("embed -i pipe -o pipe.safetensors");
    writer.join().unwrap();
    assert_eq!(vectors("pipe.safetensors"), vectors("file.safetensors"));
    // By the name of standard input: a pipe, a socket as Node gives its children, a file.
    let with_pipe = |line: &str, bytes: &[u8]| {
        let words: Vec<&str> = line.split(' ').collect();
        let mut child = folder.piped(&words).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_owned();
        let writer = std::thread::spawn(move || stdin.write_all(&bytes));
        let output = finish(child, LONGEST);
        let _ = writer.join().unwrap();
        assert!(output.status.success(), "{line}: {}", remarks(&output));
        output.stdout
    };
    assert_eq!(with_pipe("eval -i /dev/stdin", &pairs), table);
    with_pipe("embed -i /dev/stdin -o stdin.out", &pairs);
    assert_eq!(vectors("stdin.out"), vectors("file.out"));
    let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let bytes = pairs.clone();
    let writer = std::thread::spawn(move || here.write_all(&bytes).unwrap());
    let socket: std::os::fd::OwnedFd = there.into();
    let output = folder.run_with("eval -i /dev/stdin", socket.into());
    writer.join().unwrap();
    assert!(output.status.success(), "{}", remarks(&output));
    assert_eq!(output.stdout, table);
    let output = folder.run_with(
        "eval -i /dev/stdin",
        File::open(folder.path("a.tsv")).unwrap().into(),
    );
    assert_eq!(output.stdout, table);

    // Vectors, by the name or by what they begin with.
    let scored = folder.success("score file.safetensors");
    assert_eq!(folder.success("score file.out"), scored);
    for name in ["file.safetensors", "file.out"] {
        assert_eq!(with_pipe("score /dev/stdin", &vectors(name)), scored, "{name}");
    }
    let writer = folder.fifo("fifo.safetensors", vectors("file.safetensors"));
    assert_eq!(folder.success("score fifo.safetensors"), scored);
    writer.join().unwrap();
    let writers = ["text", "image"]
        .map(|side| folder.fifo(&format!("fifo.{side}.npy"), vectors(&format!("file.{side}.npy"))));
    assert_eq!(folder.success("score fifo.text.npy"), scored);
    join(writers);

    // Texts, labels, pictures.
    folder.write("texts", "一只猫\n两只狗\n");
    let tokens = folder.success("tokenize texts");
    assert_eq!(with_pipe("tokenize", "一只猫\n两只狗\n".as_bytes()), tokens);
    let writer = folder.fifo("pipe", "一只猫\n两只狗\n".into());
    assert_eq!(folder.success("tokenize pipe"), tokens);
    writer.join().unwrap();
    let picture = read_golden("images/r05.jpg");
    fs::write(folder.path("picture"), &picture).unwrap();
    let classified = folder.success("classify --labels 猫,狗 picture");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).unwrap();
    let writers = [
        folder.fifo("labels", "猫\n狗\n".into()),
        folder.fifo("pipe", picture),
    ];
    assert_eq!(
        text(&folder.success("classify --labels-file labels pipe")).replace("pipe", "picture"),
        text(&classified)
    );
    join(writers);
}

/// Where two passes are needed a stream is kept in a temporary file.
#[test]
fn what_is_read_twice_may_be_a_stream() {
    let folder = Folder::with_pairs();
    let pairs = String::from_utf8(folder.read("a.tsv")).unwrap();
    let (mut texts, mut images) = (String::new(), String::new());
    for (i, line) in pairs.lines().enumerate() {
        let (caption, image) = (
            line.split('\t').next().unwrap(),
            line.rsplit('\t').next().unwrap(),
        );
        texts += &format!("{{\"text_id\": {i}, \"text\": \"{caption}\", \"image_ids\": [{i}]}}\n");
        images += &format!("{i}\t{image}\n");
    }
    folder.write("texts.jsonl", &texts);
    folder.write("images.tsv", &images);
    let table = folder.success("eval --texts texts.jsonl --images images.tsv");
    let writers = [
        folder.fifo("texts.pipe", texts.into()),
        folder.fifo("images.pipe", images.into()),
    ];
    assert_eq!(
        folder.success("eval --texts texts.pipe --images images.pipe"),
        table
    );
    join(writers);

    // Weights are read and their sum is computed.
    convert(&folder, "model");
    let writers = [
        ("w.pdparams", "models/tiny.pdparams"),
        ("t.json", "models/tiny_text_config.json"),
        ("i.json", "models/tiny_vision_config.json"),
        ("v.txt", "vocab_tiny.txt"),
    ]
    .map(|(name, file)| folder.fifo(name, read_golden(file)));
    folder.success(
        "convert --weights w.pdparams --text-config t.json --image-config i.json --vocab v.txt --name tiny -o streamed",
    );
    join(writers);
    for name in ["image.safetensors", "text.safetensors", "vocab.txt"] {
        assert!(
            folder.read(&format!("streamed/{name}")) == folder.read(&format!("model/{name}")),
            "{name}"
        );
    }
    let sums = |name: &str| {
        let info = folder.success(&format!("info --model {name} --json"));
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        [0, 1].map(|i| info["config"]["sources"][i]["sha256"].clone())
    };
    assert_eq!(sums("streamed"), sums("model"));
    // A temporary folder that is full, or that is not there, is named.
    let writer = folder.fifo("images.pipe", b"1\tQUJD\n".to_vec());
    let words = ["eval", "--texts", "texts.jsonl", "--images", "images.pipe"];
    let child = folder
        .piped(&words)
        .env("TMPDIR", "/nonexistent")
        .spawn()
        .unwrap();
    let error = failure(&finish(child, LONGEST));
    assert!(
        error.contains("images.pipe") && error.contains("/nonexistent"),
        "{error}"
    );
    writer.join().unwrap();
}

#[test]
fn a_run_over_a_stream_is_resumed_if_it_is_the_same_stream() {
    let folder = Folder::with_pairs();
    let pairs = String::from_utf8(folder.read("a.tsv")).unwrap();
    folder.success("embed -i a.tsv -o whole");
    let lines: Vec<&str> = pairs.lines().collect();
    let broken = [&lines[..4], &["x\t1\tAAAA"], &lines[4..]].concat().join("\n");
    let writer = folder.fifo("pipe", broken.into_bytes());
    folder.failure("embed -i pipe -o v --batch-size 2");
    writer.join().unwrap();
    // Another stream.
    let other = [&["另\t1\tAAAA"], &lines[1..]].concat().join("\n");
    let writer = folder.fifo("pipe", other.into_bytes());
    let error = folder.failure("embed -i pipe -o v --batch-size 2 --resume");
    assert!(
        error.contains("pipe is not the stream whose first 4 rows are kept"),
        "{error}"
    );
    writer.join().unwrap();
    // The same one, mended, by another name.
    let writer = folder.fifo("again", pairs.into_bytes());
    let output = folder.run("embed -i again -o v --batch-size 2 --resume");
    assert!(output.status.success(), "{}", remarks(&output));
    assert!(
        remarks(&output).contains("resuming after 4 rows"),
        "{}",
        remarks(&output)
    );
    writer.join().unwrap();
    assert_eq!(folder.read("v"), folder.read("whole"));
}

#[test]
fn a_run_that_is_resumed_replaces_only_what_it_was_to_replace() {
    let folder = Folder::with_pairs();
    folder.success("embed -i a.tsv -o whole");
    let pairs = String::from_utf8(folder.read("a.tsv")).unwrap();
    // A row as long as the good one, and no image.
    let row = pairs.lines().nth(4).unwrap();
    let image = row.rsplit('\t').next().unwrap();
    folder.write("b.tsv", pairs.replace(image, &"A".repeat(image.len())));
    folder.failure("embed -i b.tsv -o v --batch-size 2");
    // Somebody else's, made meanwhile.
    folder.write("v", "mine");
    let error = folder.failure("embed -i b.tsv -o v --batch-size 2 --resume");
    assert!(
        error.contains("v is there already; --overwrite replaces it"),
        "{error}"
    );
    let error = folder.failure("embed -i b.tsv -o v --batch-size 2");
    assert!(
        error.contains("v.rows has 4 rows of a run that broke off"),
        "{error}"
    );
    // Begun with --overwrite, so that --resume alone goes on.
    folder.failure("embed -i b.tsv -o v --batch-size 2 --overwrite");
    assert_eq!(folder.read("v"), b"mine");
    folder.write("b.tsv", &pairs);
    let output = folder.run("embed -i b.tsv -o v --batch-size 2 --resume");
    assert!(output.status.success(), "{}", remarks(&output));
    assert!(
        remarks(&output).contains("resuming after 4 rows"),
        "{}",
        remarks(&output)
    );
    assert_eq!(folder.read("v"), folder.read("whole"));
}

/// A program at the other end of both pipes gets the answer to a line before it sends the next.
#[test]
fn tokenize_answers_each_line() {
    let folder = Folder::new();
    let mut child = folder.piped(&["tokenize"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (send, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            send.send(line.unwrap()).unwrap();
        }
    });
    for text in ["一只猫", "两只狗"] {
        writeln!(stdin, "{text}").unwrap();
        let answer = lines.recv_timeout(LONGEST).expect("an answer");
        assert!(answer.contains("\"ids\""), "{answer}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_is_no_file_and_no_stream_is_an_error() {
    let folder = Folder::with_pairs();
    fs::create_dir(folder.path("folder")).unwrap();
    fs::create_dir(folder.path("folder.safetensors")).unwrap();
    for (what, kind) in [
        ("folder", "a folder"),
        ("/dev/zero", "a device"),
        ("/dev/urandom", "a device"),
    ] {
        for line in [
            "eval -i IT",
            "embed -i IT -o v",
            "tokenize IT",
            "score IT",
            "eval --texts IT --images a.tsv",
            "classify --labels-file IT a.tsv",
            "embed --config IT",
            "convert --weights a.tsv --text-config IT --vocab a.tsv -o model",
        ] {
            let error = folder.failure(&line.replace("IT", what));
            assert!(
                error.contains(&format!("{what} is {kind}, expected a file or a pipe")),
                "{line}: {error}"
            );
        }
    }
    assert!(
        folder
            .failure("score folder.safetensors")
            .contains("folder.safetensors is a folder")
    );
    let output = folder.run("classify --labels 猫,狗 /dev/zero folder");
    let text = remarks(&output);
    assert!(
        text.contains("/dev/zero is a device") && text.contains("folder is a folder"),
        "{text}"
    );
    assert!(
        folder.names() == ["a.tsv", "folder", "folder.safetensors"],
        "{:?}",
        folder.names()
    );

    // A model's files are files: nobody waits for somebody to write into them.
    for name in ["config.json", "manifest.json", "vocab.txt", "image.safetensors"] {
        convert(&folder, "model");
        fs::remove_file(folder.path("model").join(name)).unwrap();
        make_fifo(&folder.path("model").join(name));
        let error = folder.failure("eval -m model -i a.tsv");
        assert!(error.contains(&format!("model/{name}")), "{error}");
        fs::remove_dir_all(folder.path("model")).unwrap();
    }
    make_fifo(&folder.path("index"));
    fs::create_dir(folder.path("pictures")).unwrap();
    fs::copy(golden("images/r05.jpg"), folder.path("pictures/r05.jpg")).unwrap();
    let error = folder.failure("search --images pictures --text 猫 --index index");
    assert!(error.contains("index is not a plain file"), "{error}");
}

/// A large sparse file.
fn large(path: &Path) {
    File::create(path).unwrap().set_len(80 << 20).unwrap();
}

/// The command waits for its second file when the first one is mapped, so it is known when that shrinks.
#[test]
fn a_file_that_shrinks_while_it_is_read_is_named() {
    let folder = Folder::new();
    large(&folder.path("large.pdparams"));
    make_fifo(&folder.path("second.pdparams"));
    let line = format!(
        "convert --weights large.pdparams --weights second.pdparams --text-config {} --vocab {} -o model",
        golden("models/tiny_text_config.json").display(),
        golden("vocab_tiny.txt").display()
    );
    let words: Vec<&str> = line.split(' ').collect();
    for cut in [0, 4096] {
        large(&folder.path("large.pdparams"));
        let child = folder.piped(&words).spawn().unwrap();
        // Opened by both when the command has come that far.
        let mut second = OpenOptions::new()
            .write(true)
            .open(folder.path("second.pdparams"))
            .unwrap();
        let file = OpenOptions::new()
            .write(true)
            .open(folder.path("large.pdparams"))
            .unwrap();
        file.set_len(cut).unwrap();
        second.write_all(b"{").unwrap();
        drop(second);
        let error = failure(&finish(child, LONGEST));
        match cut {
            0 => assert_eq!(
                error,
                "error: large.pdparams was cut from 83886080 to 0 bytes while it was being read"
            ),
            // What is still there tells that it is no checkpoint.
            _ => assert!(error.contains("large.pdparams"), "{error}"),
        }
    }
}

#[test]
#[cfg(feature = "train")]
fn pairs_that_shrink_while_a_run_reads_them_are_named() {
    let folder = Folder::new();
    // Rows of a whole picture, up to beyond what is read into memory.
    let row = format!("一只猫\t1\t{}\n", "A".repeat(1 << 20));
    let mut file = File::create(folder.path("pairs.tsv")).unwrap();
    for _ in 0..70 {
        file.write_all(row.as_bytes()).unwrap();
    }
    make_fifo(&folder.path("vocab"));
    folder.write(
        "c.yaml",
        "name: small\noutput: run\ntrain_file: pairs.tsv\nmodel:\n  vocab_file: vocab\n  max_text_tokens: 16\n  image: \
         {image_size: 32, patch_size: 16, width: 16, depth: 1, heads: 2, mlp_width: 32, epsilon: 1.0e-6}\n  text: \
         {vocab_size: 2000, max_positions: 16, width: 16, depth: 1, heads: 2, query_head_width: 8, value_head_width: 8, \
         mlp_width: 32, activation: gelu, epsilon: 1.0e-5}\nbatch_size: 16\nsteps: 2\nlearning_rate: 1.0e-3\n",
    );
    let child = folder.piped(&["train", "--config", "c.yaml"]).spawn().unwrap();
    let mut vocab = OpenOptions::new().write(true).open(folder.path("vocab")).unwrap();
    file.set_len(100).unwrap();
    vocab.write_all(&read_golden("vocab_tiny.txt")).unwrap();
    drop(vocab);
    let error = failure(&finish(child, LONGEST));
    assert!(
        error.starts_with("error: pairs.tsv was cut from ")
            && error.contains(" to 100 bytes while it was being read"),
        "{error}"
    );
}

/// A file that may not grow further is an error of its writer, not the end of the process by a signal.
#[test]
fn the_limit_on_sizes_is_an_error() {
    let folder = Folder::with_pairs();
    let limited = |line: &str| {
        let mut command = folder.piped(&["unused"; 0]);
        let program = command.get_program().to_owned();
        command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -f 8; exec \"$0\" {line}")])
            .arg(program)
            .current_dir(folder.root())
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        failure(&finish(command.spawn().unwrap(), LONGEST))
    };
    for line in [
        "embed -i a.tsv -o v.out".to_owned(),
        format!(
            "convert --model {} -o model",
            repository("models/scenes").display()
        ),
        "search --images IMAGES --text 猫 --index index"
            .replace("IMAGES", &golden("images").display().to_string()),
    ] {
        let error = limited(&line);
        assert!(error.contains("File too large"), "{line}: {error}");
    }
    let left = folder.names();
    assert!(
        !left
            .iter()
            .any(|name| ["v.out", "model", "index"].contains(&name.as_str())),
        "{left:?}"
    );
}
