use super::{NamespaceKind, Spec};

const DOCKER_LIKE: &str = r#"{
  "ociVersion": "1.0.2-dev", "unknownField": {"a": 1},
  "process": {"terminal": true, "consoleSize": {"height": 24, "width": 80}, "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
    "args": ["sh"], "env": ["A=1"], "cwd": "/", "capabilities": {"bounding": ["CAP_CHOWN"], "ambient": null},
    "rlimits": null, "oomScoreAdj": 100, "apparmorProfile": "x"},
  "root": {"path": "rootfs", "readonly": true},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": null}],
  "hooks": {"prestart": []},
  "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}], "sysctl": null,
    "resources": {"devices": [{"allow": false, "access": "rwm"}], "blockIO": {"weight": 500, "weightDevice": null}},
    "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
    "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
      "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]}]}}
}"#;

#[test]
fn a_document_as_engines_write_it_is_understood() {
    let spec: Spec = serde_json::from_str(DOCKER_LIKE).unwrap();
    let (process, linux) = (spec.process.unwrap(), spec.linux.unwrap());
    assert_eq!((process.user.uid, process.user.additional_gids), (1, vec![3]));
    assert!(process.capabilities.unwrap().ambient.is_empty());
    assert!(linux.makes(NamespaceKind::Pid) && !linux.makes(NamespaceKind::Ipc));
    assert_eq!((linux.outer_uid(0), linux.outer_uid(9), linux.outer_uid(10)), (1000, 1009, 10));
    let resources = linux.resources.unwrap();
    assert_eq!(resources.devices[0].major, None);
    assert_eq!(resources.block_io.unwrap().weight, Some(500));
    assert_eq!(linux.seccomp.unwrap().syscalls[0].args[0].value, 0x7e02_0000);
    assert!(spec.root.unwrap().readonly);
}

#[test]
fn a_known_field_of_the_wrong_type_is_an_error() {
    let error = serde_json::from_str::<Spec>(r#"{"process": {"args": "sh"}}"#).unwrap_err();
    assert!(error.to_string().contains("expected a sequence"), "{error}");
}

#[test]
fn an_empty_document_is_a_spec_without_anything() {
    let spec: Spec = serde_json::from_str("{}").unwrap();
    assert!(spec.process.is_none() && spec.mounts.is_empty());
}
