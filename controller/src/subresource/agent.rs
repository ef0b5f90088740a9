//! What is asked of guest agents, and in which shape it is answered. Pure.

use nacelle_api::{VirtualMachineInstance, conditions};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Refusal;
use super::route::{Operation, Said};

/// Of `freeze`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FreezeOptions {
    /// When file systems are thawed at the latest, as Go writes a time.
    pub unfreeze_timeout: Option<String>,
}

/// What can be asked of an agent, and is known by the launcher under these names.
const INFO: [&str; 8] = [
    "guestAgentVersion",
    "supportedCommands",
    "hostname",
    "os",
    "timezone",
    "userList",
    "fsInfo",
    "fsFreezeStatus",
];

/// Whether there is an agent that can be asked.
pub(super) fn connected(vmi: &VirtualMachineInstance) -> Result<(), Refusal> {
    let status = vmi.status.as_ref();
    if status.and_then(|status| status.phase.as_deref()) != Some("Running") {
        return Err(Refusal::conflict("VMI is not running"));
    }
    match status.is_some_and(|status| conditions::is_true(&status.conditions, "AgentConnected")) {
        true => Ok(()),
        false => Err(missing()),
    }
}

fn missing() -> Refusal {
    Refusal::conflict("VMI does not have guest agent connected")
}

/// What the launcher is told.
pub(super) fn command(operation: Operation, options: &FreezeOptions) -> (&'static str, Option<Value>) {
    match operation {
        Operation::Unfreeze => ("agent/unfreeze", None),
        _ => (
            "agent/freeze",
            Some(json!({"unfreezeTimeout": options.unfreeze_timeout})),
        ),
    }
}

/// What is answered, of all that the launcher knows by the agent.
pub(super) fn answer(asked: Said, mut said: Value) -> Result<Value, Refusal> {
    // It may have gone since that was last reported.
    if said.get("connected") != Some(&Value::Bool(true)) {
        return Err(missing());
    }
    let mut part = |path: &str| said.pointer_mut(path).map(Value::take).unwrap_or_default();
    let list = |items: Value| {
        let items = if items.is_array() { items } else { json!([]) };
        json!({"metadata": {}, "items": items})
    };
    Ok(match asked {
        Said::GuestOsInfo => {
            let known = INFO.into_iter().map(|field| (field, part(&format!("/{field}"))));
            let known = known.filter(|(_, value)| !value.is_null());
            known.map(|(field, value)| (field.to_owned(), value)).collect()
        }
        Said::UserList => list(part("/userList")),
        Said::FilesystemList => list(part("/fsInfo/disks")),
    })
}

#[cfg(test)]
mod tests {
    use nacelle_api::vmi::VirtualMachineInstanceStatus;

    use super::*;

    #[test]
    fn there_is_an_agent_where_a_condition_says_so() {
        let mut vmi = VirtualMachineInstance::new("a", Default::default());
        let refused = |vmi: &VirtualMachineInstance| {
            let refusal = connected(vmi).unwrap_err();
            (refusal.code.as_u16(), refusal.message)
        };
        assert_eq!(refused(&vmi), (409, "VMI is not running".into()));
        let status = vmi.status.insert(VirtualMachineInstanceStatus::default());
        status.phase = Some("Running".into());
        assert_eq!(
            refused(&vmi),
            (409, "VMI does not have guest agent connected".into())
        );
        let list = &mut vmi.status.as_mut().unwrap().conditions;
        conditions::set(list, "AgentConnected", true, "", "", Default::default());
        assert_eq!(connected(&vmi), Ok(()));
        vmi.status.as_mut().unwrap().phase = Some("Succeeded".into());
        assert_eq!(refused(&vmi).0, 409);
    }

    #[test]
    fn each_question_has_its_part_of_what_is_known() {
        let said = json!({
            "connected": true, "guestAgentVersion": "7.2.22", "os": {"id": "debian"}, "interfaces": [{"interfaceName": "lo"}],
            "userList": [{"userName": "root", "loginTime": 1.5}], "fsInfo": {"disks": [{"diskName": "vda"}]},
        });
        let ask = |asked| answer(asked, said.clone()).unwrap();
        assert_eq!(
            ask(Said::GuestOsInfo),
            json!({
                "guestAgentVersion": "7.2.22", "os": {"id": "debian"}, "userList": said["userList"], "fsInfo": said["fsInfo"],
            })
        );
        assert_eq!(
            ask(Said::UserList),
            json!({"metadata": {}, "items": said["userList"]})
        );
        assert_eq!(
            ask(Said::FilesystemList),
            json!({"metadata": {}, "items": [{"diskName": "vda"}]})
        );
        let little = answer(Said::FilesystemList, json!({"connected": true})).unwrap();
        assert_eq!(little["items"], json!([]));
        let gone = answer(Said::UserList, json!({"connected": false})).unwrap_err();
        assert_eq!(
            (gone.code.as_u16(), gone.message.as_str()),
            (409, "VMI does not have guest agent connected")
        );
    }

    #[test]
    fn a_freeze_says_for_how_long() {
        let options: FreezeOptions = serde_json::from_value(json!({"unfreezeTimeout": "5m0s"})).unwrap();
        let freeze = command(Operation::Freeze, &options);
        assert_eq!(freeze, ("agent/freeze", Some(json!({"unfreezeTimeout": "5m0s"}))));
        let unsaid = command(Operation::Freeze, &FreezeOptions::default());
        assert_eq!(unsaid.1, Some(json!({"unfreezeTimeout": null})));
        assert_eq!(command(Operation::Unfreeze, &options), ("agent/unfreeze", None));
    }
}
