//! The units of `deploy/systemd`: systemd reads them without a complaint, and nats-server its configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use stack::find;
use tests::machine;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd")
}

/// The units as they are where their programs are installed: here another one stands in for them.
fn installed(home: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder()).expect("units").flatten().map(|file| file.path());
    let units = files.filter(|file| file.extension().is_some_and(|it| it == "service"));
    let put = |unit: PathBuf| {
        let mut text = fs::read_to_string(&unit).expect("a unit");
        for program in ["gateway", "persister", "nats-server"] {
            text = text.replace(&format!("/usr/local/bin/{program}"), "/bin/true");
        }
        let at = home.join(unit.file_name().expect("a name"));
        fs::write(&at, text).expect("a copy");
        at
    };
    units.map(put).collect()
}

/// What systemd has to say of units; `None` where there is no systemd.
fn complaints(units: &[PathBuf]) -> Option<String> {
    let verify = Command::new("systemd-analyze").arg("verify").args(units).output();
    let Ok(verify) = verify else {
        eprintln!("NOT CHECKED: systemd-analyze is not here");
        return None;
    };
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    Some(if verify.status.success() { said } else { format!("{}\n{said}", verify.status) })
}

#[test]
fn systemd_takes_every_unit() {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("units");
    fs::create_dir_all(&home).expect("a folder");
    let mut units = installed(&home);
    assert_eq!(units.len(), 3);
    let Some(said) = complaints(&units) else { return };
    assert_eq!(said, "");
    let wrong = home.join("wrong.service");
    let unit = fs::read_to_string(&units[0]).expect("a unit");
    fs::write(&wrong, unit.replace("Restart=always", "Restart=somehow")).expect("a copy");
    units.push(wrong);
    assert!(complaints(&units).is_some_and(|said| said.contains("wrong.service")), "it notices");
}

#[test]
fn nats_takes_its_configuration() {
    let nats = find::nats(&machine()).expect("nats-server");
    let check = Command::new(nats).arg("-t").arg("-c").arg(folder().join("nats.conf")).output();
    let check = check.expect("nats-server runs");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
