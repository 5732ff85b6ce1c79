//! The topology files themselves; none of this needs privileges.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::topology::Topology;
use super::{Result, skip};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn topologies() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(Path::new(ROOT).join("containerlab"))? {
        let folder = folder?.path();
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = folder.join(format!("{name}.clab.yml"));
        if file.exists() {
            found.push(file);
        }
    }
    found.sort();
    assert!(found.len() >= 2, "{found:?}");
    Ok(found)
}

/// What a topology binds is in the repository, but for the certificates, which never are.
#[test]
fn every_bind_has_its_file() -> Result<()> {
    for file in topologies()? {
        let topology = Topology::read(&file)?;
        assert!(file.ends_with(format!("{0}/{0}.clab.yml", topology.name)), "{}", file.display());
        for (name, node) in &topology.nodes {
            for bind in &node.binds {
                let made_at_deploy = bind.source.components().any(|part| part.as_os_str() == "tls");
                assert!(
                    made_at_deploy || bind.source.exists(),
                    "{}: {name} binds {}",
                    file.display(),
                    bind.source.display()
                );
            }
        }
    }
    Ok(())
}

/// Every killick of every lab would start: no error and no warning in its configuration.
#[test]
fn every_killick_configuration_is_clean() -> Result<()> {
    for file in topologies()? {
        for (name, node) in &Topology::read(&file)?.nodes {
            for bind in &node.binds {
                if bind.source.file_name() != Some("killick.toml".as_ref()) {
                    continue;
                }
                match killick::config::load(&bind.source, &[], false) {
                    Ok((_, warnings)) => assert!(warnings.list.is_empty(), "{name}:\n{warnings}"),
                    Err(faults) => panic!("{name}:\n{faults}"),
                }
            }
        }
    }
    Ok(())
}

/// containerlab's own schema, which is stricter than containerlab. It is not part of this
/// repository: `CLAB_SCHEMA` names a copy, and `make deps` then fetches the validator.
#[test]
fn the_topologies_satisfy_the_schema_of_containerlab() -> Result<()> {
    let Some(schema) = std::env::var_os("CLAB_SCHEMA") else {
        skip(
            "CLAB_SCHEMA is not set, the topology files are not held against containerlab's schema",
        );
        return Ok(());
    };
    let modules = Path::new(ROOT).join("target/schema/node_modules");
    if !modules.is_dir() {
        skip("the validator is not installed (make deps)");
        return Ok(());
    }
    let output = Command::new("node")
        .arg(Path::new(ROOT).join("tests/netns/validate.js"))
        .arg(schema)
        .args(topologies()?)
        .env("NODE_PATH", modules)
        .output()?;
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
