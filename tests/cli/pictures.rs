//! The folder search: which files of a folder are pictures, and what is said of the others.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{command, finish, make_fifo, read_golden, remarks, text};

fn golden(name: &str) -> PathBuf {
    crate::support::golden("images").join(name)
}

/// Runs the binary, which has to end within a minute whatever it meets.
fn run_with(args: &[&str], input: &[u8]) -> Output {
    let mut child = command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = finish(child, Duration::from_secs(60));
    writer.join().unwrap();
    output
}

fn run(args: &[&str]) -> Output {
    run_with(args, b"")
}

/// The files that a search of the folder finds, by their names in it, and the remarks.
fn search(folder: &Path, more: &[&str]) -> (Vec<String>, String) {
    let args = [
        "search",
        "--images",
        text(folder),
        "--text",
        "猫",
        "--top",
        "1000",
        "--json",
    ];
    let output = run(&[&args[..], more].concat());
    let remarks = remarks(&output);
    assert!(output.status.success(), "{remarks}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut files: Vec<String> = (found["hits"].as_array().unwrap().iter())
        .map(|hit| {
            let file = Path::new(hit["file"].as_str().unwrap());
            file.strip_prefix(folder).unwrap().display().to_string()
        })
        .collect();
    files.sort();
    let once: BTreeSet<&String> = files.iter().collect();
    assert_eq!(once.len(), files.len(), "{files:?}");
    (files, remarks)
}

fn write(folder: &Path, name: &str, bytes: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn pictures_are_told_by_their_content_and_junk_is_left_out() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let (jpeg, png) = (read_golden("images/r00.jpg"), read_golden("images/r30.png"));
    let bmp = [
        &b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x01\0\0\0\x01\0\0\0\x01\0\x18\0"[..],
        &[0; 24],
        b"\x10\x20\x30\0",
    ]
    .concat();
    let pictures: [(&str, &[u8]); 12] = [
        ("a.jfif", &jpeg),
        ("b.jpe", &jpeg),
        ("c.pbm", b"P1 2 2\n1 0 0 1\n"),
        ("d.dib", &bmp),
        ("e.mpo", &jpeg),
        ("f.JPG", &png),
        ("g.Png", &jpeg),
        ("no extension", &png),
        ("notes.txt", &jpeg),
        ("album/with.dots", &bmp),
        ("album/2024/no extension", b"P5 1 1 255 \x80"),
        ("100% 猫\t2.jpg", &jpeg),
    ];
    let junk: [(&str, &[u8]); 13] = [
        (".hidden.jpg", &jpeg),
        ("._a.jfif", b"\0\x05\x16\x07\0\x02\0\0Mac OS X"),
        (".DS_Store", b"\0\0\0\x01Bud1"),
        (".thumbnails/a.jpg", &png),
        (".Trash-1000/files/a.jpg", &png),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0"),
        ("album/@eaDir/b.jpg/SYNOPHOTO_THUMB_M.jpg", &png),
        ("#recycle/a.jpg", &png),
        ("$RECYCLE.BIN/S-1-5-21/$R1.jpg", &png),
        ("System Volume Information/a.jpg", &png),
        ("lost+found/#1234", &png),
        ("__MACOSX/a.jpg", &png),
        ("album/.@__thumb/b.jpg", &png),
    ];
    let others: [(&str, &[u8]); 13] = [
        ("read me.txt", b"P1 is not a picture\n"),
        ("cars.md", b"BMW is a make of cars\n"),
        ("empty", b""),
        ("table.csv", b"a,b\n"),
        ("film.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp41"),
        ("a.gif", b"GIF89a\x01\0\x01\0"),
        ("gif.jpg", b"GIF89a\x01\0\x01\0"),
        ("IMG_1.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("b.avif", b"\0\0\0\x18ftypavif\0\0\0\0mif1avif"),
        ("DSC_1.NEF", b"MM\0*\0\0\0\x08\0\0"),
        ("IMG_2.CR2", b"II*\0\x10\0\0\0CR\x02\0"),
        ("broken.jpg", b"not a picture"),
        ("empty.png", b""),
    ];
    for (name, bytes) in pictures.iter().chain(&junk).chain(&others) {
        write(folder, name, bytes);
    }
    let mut expected: Vec<&str> = pictures.iter().map(|(name, _)| *name).collect();
    expected.sort();
    let index = folder.join("index");
    let with_index = ["--index", text(&index)];
    let (files, remarks) = search(folder, &with_index);
    assert_eq!(files, expected);
    for line in [
        "skipped 2 that are pictures only by their names: broken.jpg (bytes of no known image format), \
         empty.png (it is empty)",
        "not read: 1 AVIF, 2 GIF, 1 HEIC, 2 RAW; expected JPEG, PNG, WebP, BMP, TIFF or PNM",
        "note: 13 hidden files and folders, trash and thumbnails were left out (--all-files takes them): #recycle, \
         $RECYCLE.BIN, .DS_Store, ...",
    ] {
        assert!(remarks.contains(line), "{line}: {remarks}");
    }
    for name in ["read me", "cars", "table", "film", "index"] {
        assert!(!remarks.contains(name), "{name}: {remarks}");
    }
    // The same from the index, of which no file has to be opened again.
    let (again, _) = search(folder, &with_index);
    assert_eq!(again, expected);
    let (_, quiet) = search(folder, &[&with_index[..], &["--quiet"]].concat());
    assert!(
        quiet.contains("not read: ") && !quiet.contains("note: "),
        "{quiet}"
    );

    let (files, remarks) = search(folder, &["--all-files"]);
    let hidden = junk.iter().filter(|(_, bytes)| bytes.len() > 100);
    expected.extend(hidden.map(|(name, _)| *name));
    expected.sort();
    assert_eq!(files, expected);
    assert!(!remarks.contains("note: "), "{remarks}");

    let empty = TempDir::new().unwrap();
    write(empty.path(), ".jpg", &jpeg);
    write(empty.path(), "a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic");
    let output = run(&["search", "--images", text(empty.path()), "--text", "猫"]);
    let remarks = crate::support::remarks(&output);
    assert_eq!(output.status.code(), Some(1));
    for part in [
        "has no picture that could be read",
        "not read: 1 HEIC",
        "note: 1 hidden files",
    ] {
        assert!(remarks.contains(part), "{remarks}");
    }
}

#[cfg(unix)]
#[test]
fn links_and_second_names_of_a_file() {
    use std::os::unix::fs::symlink;
    let (folder, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (folder, elsewhere) = (folder.path(), elsewhere.path());
    let jpeg = read_golden("images/r00.jpg");
    for name in ["a.jpg", "sub/b.jpg"] {
        write(folder, name, &jpeg);
    }
    write(elsewhere, "c.jpg", &jpeg);
    write(elsewhere, "trip/d.jpg", &jpeg);
    fs::hard_link(folder.join("a.jpg"), folder.join("z hard.jpg")).unwrap();
    symlink("sub/b.jpg", folder.join("0 link.jpg")).unwrap();
    symlink(elsewhere.join("c.jpg"), folder.join("out.jpg")).unwrap();
    symlink(elsewhere.join("trip"), folder.join("linked")).unwrap();
    symlink("..", folder.join("sub/up")).unwrap();
    symlink(folder, folder.join("sub/self")).unwrap();
    symlink("gone.jpg", folder.join("broken.jpg")).unwrap();
    symlink("circle.jpg", folder.join("circle.jpg")).unwrap();
    let (files, remarks) = search(folder, &[]);
    assert_eq!(files, ["a.jpg", "out.jpg", "sub/b.jpg"]);
    for line in [
        "skipped 2 links that lead to nothing: broken.jpg, circle.jpg",
        "skipped 3 linked folders (--follow-links looks into them): linked, sub/self, sub/up",
        "note: 2 other names of the same files were left out: z hard.jpg, 0 link.jpg",
    ] {
        assert!(remarks.contains(line), "{line}: {remarks}");
    }
    let (files, remarks) = search(folder, &["--follow-links"]);
    assert_eq!(files, ["a.jpg", "linked/d.jpg", "out.jpg", "sub/b.jpg"]);
    assert!(
        remarks.contains("note: 2 linked folders are looked into elsewhere: sub/self, sub/up"),
        "{remarks}"
    );
    // The folder itself may be a link.
    let link = elsewhere.join("photos");
    symlink(folder, &link).unwrap();
    assert_eq!(search(&link, &[]).0, ["a.jpg", "out.jpg", "sub/b.jpg"]);
}

/// Makes folders within each other whose path is longer than the system takes one.
#[cfg(unix)]
fn deep(folder: &Path) {
    use std::os::fd::{AsRawFd, FromRawFd};
    let name = std::ffi::CString::new("d".repeat(250)).unwrap();
    let mut at = fs::File::open(folder).unwrap();
    for _ in 0..20 {
        // SAFETY: the name ends with a zero and lives until the call returns.
        let made = unsafe { libc::mkdirat(at.as_raw_fd(), name.as_ptr(), 0o700) };
        assert_eq!(made, 0);
        // SAFETY: likewise.
        let opened =
            unsafe { libc::openat(at.as_raw_fd(), name.as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY) };
        assert!(opened >= 0);
        // SAFETY: the descriptor was opened here and has no other owner.
        at = unsafe { fs::File::from_raw_fd(opened) };
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_or_cannot_be_read_ends_no_search() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    write(folder, "a.jpg", &read_golden("images/r00.jpg"));
    write(folder, "locked/b.jpg", &read_golden("images/r00.jpg"));
    make_fifo(&folder.join("pipe.jpg"));
    make_fifo(&folder.join("pipe"));
    symlink("/dev/zero", folder.join("endless.jpg")).unwrap();
    symlink("pipe", folder.join("link.png")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("s.jpg")).unwrap();
    // Not even root can look behind these: the name of a file that is too long, and a path that is.
    symlink("x".repeat(300), folder.join("long.jpg")).unwrap();
    deep(folder);
    let locked = folder.join("locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let is_locked = fs::read_dir(&locked).is_err();
    let (files, remarks) = search(folder, &[]);
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    let expected: &[&str] = if is_locked {
        &["a.jpg"]
    } else {
        &["a.jpg", "locked/b.jpg"]
    };
    assert_eq!(files, expected);
    let unread = format!("skipped {} that could not be read: ", 2 + u32::from(is_locked));
    assert!(remarks.contains(&unread), "{remarks}");
    assert!(remarks.contains("long.jpg (File name too long"), "{remarks}");
    let irregular =
        "skipped 5 that are no regular files (3 FIFO, 1 device, 1 socket): endless.jpg, link.png, pipe, ...";
    assert!(remarks.contains(irregular), "{remarks}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_name_that_is_not_utf_8_is_found_kept_and_printed() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    // As GBK writes them.
    let name = OsStr::from_bytes(b"\xc3\xa8 50%\xb9\xb7.jpg");
    fs::create_dir(folder.join(OsStr::from_bytes(b"\xcf\xe0"))).unwrap();
    let file = folder.join(OsStr::from_bytes(b"\xcf\xe0")).join(name);
    fs::copy(golden("r05.jpg"), &file).unwrap();
    let index = folder.join("index");
    let args = [
        "search",
        "--images",
        text(folder),
        "--index",
        text(&index),
        "--text",
        "猫",
    ];
    let line = [&b"  "[..], file.as_os_str().as_bytes(), b"\n"].concat();
    let mut kept = Vec::new();
    for round in 0..2 {
        let output = run(&args);
        assert!(output.status.success(), "{}", remarks(&output));
        assert!(output.stdout.ends_with(&line), "{output:?}");
        let bytes = fs::read(&index).unwrap();
        assert!(round == 0 || bytes == kept);
        kept = bytes;
    }
    let output = run(&[&args[..], &["--json"]].concat());
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let hit = &found["hits"][0];
    assert_eq!(
        hit["file_encoded"],
        format!("{}/%CF%E0/è 50%25%B9%B7.jpg", text(folder))
    );
    assert!(
        hit["file"]
            .as_str()
            .unwrap()
            .ends_with("/\u{fffd}\u{fffd}/è 50%\u{fffd}\u{fffd}.jpg")
    );

    let output = command(&["classify", "--labels", "猫,狗", "--json"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", remarks(&output));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["file_encoded"], hit["file_encoded"]);
}

#[cfg(unix)]
#[test]
fn a_picture_may_be_a_stream_and_its_size_has_a_limit() {
    let jpeg = read_golden("images/r05.jpg");
    let folder = TempDir::new().unwrap();
    let classify = ["classify", "--labels", "猫,狗", "--json"];
    let of_file = run(&[&classify[..], &[text(&golden("r05.jpg"))]].concat());
    let labels = |output: &Output| {
        let line: Value = serde_json::from_slice(&output.stdout).unwrap();
        line["labels"].clone()
    };
    let of_stdin = run_with(&[&classify[..], &["/dev/stdin"]].concat(), &jpeg);
    assert_eq!(labels(&of_stdin), labels(&of_file));
    let pipe = folder.path().join("pipe");
    make_fifo(&pipe);
    let writer = {
        let (pipe, jpeg) = (pipe.clone(), jpeg.clone());
        std::thread::spawn(move || fs::write(pipe, jpeg))
    };
    assert_eq!(
        labels(&run(&[&classify[..], &[text(&pipe)]].concat())),
        labels(&of_file)
    );
    writer.join().unwrap().unwrap();
    let output = run(&[&classify[..], &["/dev/zero"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        remarks(&output).contains("skipped /dev/zero "),
        "{}",
        remarks(&output)
    );
}
