use super::*;

fn value(text: &str, path: Option<&Path>) -> ParamValue {
    ParamValue { text: text.into(), path: path.map(Into::into) }
}

#[test]
fn each_occurrence_of_a_parameter_is_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    std::fs::write(&one, b"hello").unwrap();
    std::fs::write(&two, b"other").unwrap();
    let (one, two) = (value("set", Some(&one)), value("set", Some(&two)));
    let files = ParamFiles::open([("list", ParamKind::PathRead, &one), ("list", ParamKind::PathRead, &two)]).unwrap();
    assert_eq!(files.size("list", 0), Ok(5));
    assert_eq!(files.read("list", 0, 1, 3), Ok(b"ell".to_vec()));
    assert_eq!(files.read("list", 1, 3, 100), Ok(b"er".to_vec()));
    assert_eq!(files.read("list", 1, u64::MAX, 100), Ok(vec![]));
    assert_eq!(files.read("list", 2, 0, 1), Err(Errno::Enoent));
    assert_eq!(files.size("other", 0), Err(Errno::Enoent));
    assert_eq!(files.append("list", 0, b"x"), Err(Errno::Einval));
    assert_eq!(files.holds("list", 0), Err(Errno::Einval));
}

#[test]
fn a_missing_file_is_one_line_that_names_it() {
    let path = value("set", Some(Path::new("/nonexistent/list")));
    let error = ParamFiles::open([("list", ParamKind::PathRead, &path)]).unwrap_err();
    assert_eq!(error.to_string(), "list=/nonexistent/list: cannot be read: No such file or directory");
    let path = value("set", Some(Path::new("/")));
    let error = ParamFiles::open([("log", ParamKind::PathAppend, &path)]).unwrap_err();
    assert_eq!(error.to_string(), "log=/: cannot be opened for appending: Is a directory");
    assert!(ParamFiles::open([("list", ParamKind::PathRead, &path)]).is_err());
}

#[test]
fn a_secret_is_no_file_and_is_not_shown() {
    let hush = value("set", Some(Path::new("hush")));
    let list = value("set", Some(Path::new("/dev/null")));
    let files = ParamFiles::open([("pass", ParamKind::Secret, &hush), ("list", ParamKind::PathRead, &list)]);
    let files = files.unwrap();
    assert_eq!(files.secret("pass", 0).map(Secret::bytes), Ok(&b"hush"[..]));
    assert_eq!(files.secret("pass", 1).err(), Some(Errno::Enoent));
    assert_eq!(files.secret("list", 0).err(), Some(Errno::Einval));
    assert_eq!(files.read("pass", 0, 0, 10), Err(Errno::Einval));
    assert!(!format!("{files:?}").contains("hush"));
    let missing = value("set", Some(Path::new("+/no/such/hush")));
    let error = ParamFiles::open([("pass", ParamKind::Secret, &missing)]).unwrap_err().to_string();
    assert_eq!(error, "pass: the file after '+' cannot be read: No such file or directory");
}

#[test]
fn appending_goes_to_the_end_and_makes_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let log = value("set", Some(&path));
    let files = ParamFiles::open([("log", ParamKind::PathAppend, &log)]).unwrap();
    files.append("log", 0, b"one\n").unwrap();
    std::fs::write(&path, b"").unwrap();
    files.append("log", 0, b"two\n").unwrap();
    files.append("log", 0, b"").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
    assert_eq!(files.size("log", 0), Err(Errno::Einval));
}

#[test]
fn a_file_to_be_written_is_emptied_when_the_guest_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report");
    std::fs::write(&path, b"old\n").unwrap();
    let report = value("set", Some(&path));
    let open = |kind| ParamFiles::open([("report", kind, &report)]).unwrap();
    let files = open(ParamKind::PathWrite);
    files.append("report", 0, b"one\n").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"old\none\n");
    files.truncate("report", 0).unwrap();
    files.append("report", 0, b"two\n").unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"two\n");
    assert!(files.appended("report", 0).is_ok());
    assert_eq!(files.read("report", 0, 0, 1), Err(Errno::Einval));
    assert_eq!(open(ParamKind::PathAppend).truncate("report", 0), Err(Errno::Einval), "a log is not emptied");
    let directory = value("set", Some(dir.path()));
    let error = ParamFiles::open([("report", ParamKind::PathWrite, &directory)]).unwrap_err().to_string();
    assert!(error.ends_with(": cannot be opened for writing: Is a directory"), "{error}");
}

#[test]
fn a_file_that_is_kept_has_one_opener_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bitmap");
    let bitmap = value("set", Some(&path));
    let open = || ParamFiles::open([("bitmap", ParamKind::PathReadWrite, &bitmap)]);
    let first = open().unwrap();
    assert!(first.storage("bitmap", 0).is_ok());
    assert_eq!(first.append("bitmap", 0, b"x"), Err(Errno::Einval));
    let error = open().unwrap_err().to_string();
    assert!(error.ends_with("bitmap: another server, or another filter of this one, has it open"), "{error}");
    drop(first);
    open().unwrap();
    let directory = value("set", Some(Path::new("/dev/null")));
    let error = ParamFiles::open([("bitmap", ParamKind::PathReadWrite, &directory)]).unwrap_err().to_string();
    assert_eq!(error, "bitmap=/dev/null: is not a regular file");
}

#[test]
fn commands_are_numbered_and_a_text_is_none() {
    let (one, two, text) =
        (value("set", Some(Path::new("echo 1"))), value("script:", Some(Path::new("echo 2"))), value("x", None));
    let files = ParamFiles::open([
        ("run", ParamKind::Script, &one),
        ("text", ParamKind::StringOrScript, &text),
        ("text", ParamKind::StringOrScript, &two),
    ])
    .unwrap();
    assert_eq!(files.commands(), ["echo 1", "echo 2"]);
    assert_eq!((files.command("run", 0), files.command("text", 1)), (Ok(0), Ok(1)));
    assert_eq!((files.command("text", 0), files.command("run", 1)), (Err(Errno::Enoent), Err(Errno::Enoent)));
    assert_eq!(files.size("run", 0), Err(Errno::Einval));
}

#[test]
fn a_watch_tells_what_is_there_now() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flag");
    let (flag, truth) = (value("watch", Some(&path)), value("true", None));
    let files = ParamFiles::open([
        ("one", ParamKind::Watch, &flag),
        ("two", ParamKind::BoolOrWatch, &flag),
        ("three", ParamKind::BoolOrWatch, &truth),
    ])
    .unwrap();
    assert_eq!(
        (files.holds("one", 0), files.holds("two", 0), files.holds("three", 0)),
        (Ok(false), Ok(false), Ok(true))
    );
    std::fs::write(&path, b"").unwrap();
    assert_eq!((files.holds("one", 0), files.holds("two", 0)), (Ok(true), Ok(true)));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(files.holds("one", 0), Ok(false));
}

#[test]
fn what_is_at_a_path_now_is_read_and_nothing_else_than_a_regular_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rate");
    let value = value("set", Some(&path));
    let files = ParamFiles::open([("rate", ParamKind::PathNow, &value)]).unwrap();
    assert_eq!((files.read("rate", 0, 0, 10), files.size("rate", 0)), (Err(Errno::Enoent), Err(Errno::Enoent)));
    for text in ["1M", "20M"] {
        std::fs::write(dir.path().join("new"), text).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(files.read("rate", 0, 0, 10).unwrap(), text.as_bytes());
        assert_eq!(files.size("rate", 0), Ok(text.len() as u64));
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(files.read("rate", 0, 0, 10), Err(Errno::Einval));
    assert_eq!(files.holds("rate", 0), Ok(false));
}

#[test]
fn a_relative_path_to_watch_is_made_absolute() {
    let relative = value("set", Some(Path::new("some/flag")));
    let files = ParamFiles::open([("flag", ParamKind::Watch, &relative)]).unwrap();
    let ParamFile::Watch(path, _) = files.get("flag", 0).unwrap() else { panic!() };
    assert_eq!(*path, std::env::current_dir().unwrap().join("some/flag"));
}

#[test]
fn a_pipe_is_read_whole() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"from a command").unwrap();
    drop(writer);
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader)));
    let pipe = value("set", Some(&path));
    let files = ParamFiles::open([("list", ParamKind::PathRead, &pipe)]).unwrap();
    assert_eq!(files.size("list", 0), Ok(14));
    assert_eq!(files.read("list", 0, 5, 1), Ok(b"a".to_vec()));
    assert_eq!(files.read("list", 0, 5, 1), Ok(b"a".to_vec()));
    assert_eq!(files.read("list", 0, 99, 1), Ok(vec![]));
}

#[test]
fn a_pipe_that_nobody_reads_makes_no_writer_wait() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let log = value("set", Some(&path));
    for kind in [ParamKind::PathAppend, ParamKind::PathWrite] {
        // Nobody has it open.
        let files = ParamFiles::open([("log", kind, &log)]).unwrap();
        let lines = (0..1000).take_while(|_| files.append("log", 0, &[b'x'; 4096]).is_ok()).count();
        assert!((1..1000).contains(&lines), "{lines}");
        assert_eq!(files.append("log", 0, b"y"), Err(Errno::Enospc));
        // Whoever reads it at last gets whole lines.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let reader = std::fs::File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap());
        let mut read = vec![0; 1 << 20];
        let got = (&reader).read(&mut read).unwrap();
        assert_eq!(got, lines * 4096);
        assert_eq!(files.append("log", 0, b"z"), Ok(()));
        assert_eq!(((&reader).read(&mut read).unwrap(), read[0]), (1, b'z'));
    }
}
