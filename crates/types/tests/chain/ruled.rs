//! Histories in which rules of a project pack its messages.

use lockstep_types::verify::{Fault, TaskFault};
use lockstep_types::*;

use super::builder::*;

/// A batch of five messages of two devices, and one in which rules have packed the first four of them: one task of all
/// devices with a payload, and one of a device.
fn net() -> Net {
    let mut net = Net::new(100);
    net.batch((0..5).map(|n| signed(n % 2, &n.to_string())).collect(), false, None);
    let mixed = Ruled {
        group: "a".into(),
        window: Some(-4),
        payload: Some(r#"{"n":3}"#.into()),
        outputs: Some(["tasks".parse().unwrap()].into()),
    };
    let of_device = Ruled { group: String::new(), window: None, payload: None, outputs: None };
    // Sorted by something else than their arrival.
    let tasks = vec![(vec![4, 1, 2], mixed, Address::ZERO), (vec![3], of_device, signed(0, "").device)];
    net.pack(tasks);
    net.certify(2);
    net
}

/// What a history ends in when the second batch is altered, and its hash made again where `again`.
fn fault(alter: impl FnOnce(&mut Batch)) -> Fault {
    let mut net = net();
    alter(&mut net.batches[1]);
    net.batches[1].header.tasks_root = Batch::tasks_root(&net.batches[1].tasks);
    net.check().unwrap_err().fault
}

fn of_task(alter: impl FnOnce(&mut Task)) -> TaskFault {
    match fault(|batch| alter(&mut batch.tasks[0])) {
        Fault::Task { number: TaskNumber(100), fault } => fault,
        other => panic!("{other:?}"),
    }
}

fn of_ruled(alter: impl FnOnce(&mut Ruled)) -> TaskFault {
    of_task(|task| alter(task.ruled.as_mut().unwrap()))
}

#[test]
fn tasks_of_rules_take_messages_of_several_devices_in_any_order() {
    let checked = net().check().unwrap();
    assert_eq!((checked.final_height(), checked.counts().tasks, checked.counts().tasks_unchecked), (Height(2), 2, 0));
    let batch = &net().batches[1];
    assert_eq!(&Batch::decode(batch.encode().into()).unwrap(), batch);
}

#[test]
fn what_rules_made_of_a_task_cannot_be_altered() {
    assert_eq!(of_ruled(|ruled| ruled.group.push('b')), TaskFault::Id);
    assert_eq!(of_ruled(|ruled| ruled.window = None), TaskFault::Id);
    assert_eq!(of_ruled(|ruled| ruled.window = Some(4)), TaskFault::Id);
    assert_eq!(of_ruled(|ruled| ruled.payload = None), TaskFault::Id);
    assert_eq!(of_ruled(|ruled| ruled.payload = Some(r#"{"n":4}"#.into())), TaskFault::Id);
    assert_eq!(of_ruled(|ruled| ruled.outputs = None), TaskFault::Id);
    let with_dash = ["tasks", "dash"].map(|name| name.parse().unwrap()).into();
    assert_eq!(of_ruled(|ruled| ruled.outputs = Some(with_dash)), TaskFault::Id);
    assert_eq!(of_task(|task| task.sequences.swap(0, 1)), TaskFault::Id);
    let other = signed(0, "").device;
    assert_eq!(of_task(|task| task.device = other), TaskFault::Message(Sequence(4)));
    // All its messages are of this device, and yet it is another task that does not say so.
    let alone = fault(|batch| batch.tasks[1].device = Address::ZERO);
    assert_eq!(alone, Fault::Task { number: TaskNumber(101), fault: TaskFault::Id });
}

#[test]
fn messages_of_a_task_of_rules_wait_and_are_of_its_project_and_in_no_other() {
    assert_eq!(of_task(|task| task.sequences[1] = Sequence(4)), TaskFault::Message(Sequence(4)));
    assert_eq!(of_task(|task| task.sequences[1] = Sequence(6)), TaskFault::Message(Sequence(6)));
    assert_eq!(of_task(|task| task.sequences[1] = Sequence(0)), TaskFault::Message(Sequence(0)));
    assert_eq!(of_task(|task| task.sequences.truncate(2)), TaskFault::Id);
    assert_eq!(of_task(|task| task.sequences.clear()), TaskFault::Sequences);
    assert_eq!(of_task(|task| task.project_id = ProjectId(8)), TaskFault::Message(Sequence(4)));
    assert_eq!(of_task(|task| task.project_version.push('1')), TaskFault::Message(Sequence(4)));
    // It would have to be in ascending order.
    assert_eq!(of_task(|task| task.ruled = None), TaskFault::Sequences);
    let twice = fault(|batch| batch.tasks[1].sequences = vec![Sequence(1)]);
    assert_eq!(twice, Fault::Task { number: TaskNumber(101), fault: TaskFault::Message(Sequence(1)) });
}
