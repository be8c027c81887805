"""The link's state: devices that were killed keep their place, and nobody answers for another."""

from collections.abc import Iterator, Sequence
from hashlib import sha256

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity

from umbel.coordinator.service.grid import LinkGrid
from umbel.coordinator.service.link_state import LinkState, node_id

KEYS = (b"-----one-----", b"-----two-----")


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def state() -> LinkState:
    made = LinkState()
    for key in KEYS:
        made.activate_node(made.admit(key), 30)
    return made


@pytest.fixture
def grid(state: LinkState) -> Iterator[LinkGrid]:
    made = LinkGrid(state, lambda: None)
    yield made
    made.end()


def question(node: int, group: str = "1", value: int = 7) -> Message:
    return Message(RecordDict({"config": ConfigRecord({"value": value})}), node, "train", group_id=group)


def given(state: LinkState, node: int) -> Message | None:
    """Returns what a node is given when it asks, as its own loop would see it."""
    found = state.get_message_ins(node, 1)
    if not found:
        return None
    own = found[0].metadata.message_id
    contents = {part: state.object_store.get(part) or b"" for part in state._parts(own)}
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    message = inflate_object_from_contents(own, contents)
    assert isinstance(message, Message)
    message.metadata.__dict__["_message_id"] = own
    return message


def answer(to: Message, value: int = 8, node: int = 0) -> Message:
    """Returns a node's answer; with `node`, one that says it is from that one."""
    made = Message(RecordDict({"config": ConfigRecord({"value": value})}), reply_to=to)
    made.metadata.__dict__["_src_node_id"] = node or to.metadata.dst_node_id
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def bring(state: LinkState, made: Message, parts: int = 100) -> int:
    """Brings an answer as a node does, with so many of its parts; returns how many were wanted."""
    run = made.metadata.run_id
    session = state.start_session(run)
    bare = remove_content_from_message(made)
    _, wanted = state.store_message_and_object_tree(bare, get_object_tree(made), session)
    objects = get_all_nested_objects(made)
    for part in wanted[:parts]:
        state.store_object(run, session, part, objects[part].deflate())
    return len(wanted)


def value_of(message: Message) -> int:
    record = message.content["config"]
    assert isinstance(record, ConfigRecord)
    assert isinstance(record["value"], int)
    return record["value"]


def test_a_key_is_the_same_node_whenever_it_comes(state: LinkState) -> None:
    again = LinkState()
    assert [again.admit(key) for key in reversed(KEYS)] == [node_id(key) for key in reversed(KEYS)]
    assert again.admit(KEYS[0]) == node_id(KEYS[0])
    assert state.key_of(node_id(KEYS[1])) == KEYS[1]
    assert state.get_node_id_by_public_key(KEYS[0]) == node_id(KEYS[0])


def test_a_node_that_was_killed_comes_back_at_once_and_is_given_its_message_again(
    state: LinkState, grid: LinkGrid
) -> None:
    one = node_id(KEYS[0])
    (asked,) = grid.push_messages([question(one)])
    first = given(state, one)
    assert first is not None
    assert given(state, one) is None  # it works on it
    assert state.activate_node(one, 30)  # it was killed; Flower would refuse it until its heartbeats ran out
    second = given(state, one)
    assert second is not None
    assert (value_of(second), second.metadata.message_id) == (7, asked)
    bring(state, answer(second))
    (found,) = grid.pull_messages([asked])
    assert (value_of(found), found.metadata.src_node_id) == (8, one)


def test_an_answer_that_was_cut_off_is_neither_used_nor_waited_for(state: LinkState, grid: LinkGrid) -> None:
    one = node_id(KEYS[0])
    (asked,) = grid.push_messages([question(one)])
    first = given(state, one)
    assert first is not None
    assert bring(state, answer(first), parts=1) > 1
    assert list(grid.pull_messages([asked])) == []
    state.give_again(one)  # its connection broke, and it asks again
    second = given(state, one)
    assert second is not None
    bring(state, answer(second, value=9))
    assert [value_of(found) for found in grid.pull_messages([asked])] == [9]


def test_late_and_second_answers_change_nothing(state: LinkState, grid: LinkGrid) -> None:
    one = node_id(KEYS[0])
    (asked,) = grid.push_messages([question(one)])
    message = given(state, one)
    assert message is not None
    bring(state, answer(message, value=1))
    assert bring(state, answer(message, value=2)) == 0  # another answer to the same question
    assert [value_of(found) for found in grid.pull_messages([asked])] == [1]
    assert bring(state, answer(message, value=3)) == 0
    (late,) = grid.push_messages([question(one, "2")])
    overdue = given(state, one)
    assert overdue is not None
    grid.push_messages([question(node_id(KEYS[1]), "3")])  # the next round has begun
    assert bring(state, answer(overdue)) == 0
    assert [found.has_error() for found in grid.pull_messages([late])] == [True]
    assert given(state, one) is None


def test_nobody_answers_for_another(state: LinkState, grid: LinkGrid) -> None:
    """Whose an answer is is told twice: beside it, where it is checked, and within, where it is not used."""
    one, two = (node_id(key) for key in KEYS)
    (asked,) = grid.push_messages([question(one)])
    message = given(state, one)
    assert message is not None
    assert bring(state, answer(message, value=66, node=two)) == 0
    lying = answer(message, value=5)
    tree, objects = get_object_tree(lying), get_all_nested_objects(lying)
    outside = remove_content_from_message(lying)
    inside = answer(message, value=5, node=two)
    assert tree.object_id != inside.metadata.message_id
    session = state.start_session(lying.metadata.run_id)
    outside.metadata.__dict__["_message_id"] = inside.metadata.message_id
    _, wanted = state.store_message_and_object_tree(outside, get_object_tree(inside), session)
    objects |= get_all_nested_objects(inside)
    for part in wanted:
        state.store_object(lying.metadata.run_id, session, part, objects[part].deflate())
    (found,) = grid.pull_messages([asked])
    assert found.metadata.src_node_id == one


def test_bytes_that_are_no_answer_are_an_error_of_that_device_alone(state: LinkState, grid: LinkGrid) -> None:
    one = node_id(KEYS[0])
    (asked,) = grid.push_messages([question(one)])
    message = given(state, one)
    assert message is not None
    record = RecordDict({"config": ConfigRecord({"value": 1})})  # a part of an answer, in the place of one
    made = answer(message)
    session = state.start_session(made.metadata.run_id)
    bare = remove_content_from_message(made)
    bare.metadata.__dict__["_message_id"] = record.object_id
    _, wanted = state.store_message_and_object_tree(bare, get_object_tree(record), session)
    objects = get_all_nested_objects(record)
    for part in wanted:
        state.store_object(made.metadata.run_id, session, part, objects[part].deflate())
    (found,) = grid.pull_messages([asked])
    assert found.error.reason == "its answer cannot be read (TypeError)"
    assert found.metadata.src_node_id == one


def test_a_node_that_has_gone_is_named(state: LinkState, grid: LinkGrid) -> None:
    one, two = (node_id(key) for key in KEYS)
    assert set(grid.get_node_ids()) == {one, two}
    asked = list(grid.push_messages([question(one), question(two)]))
    state.deactivate_node(one)
    (found,) = grid.pull_messages(asked)
    assert (found.metadata.src_node_id, found.has_error()) == (one, True)
    assert set(grid.get_node_ids()) == {two}


def test_the_answer_of_a_node_that_leaves_at_once_is_kept(state: LinkState, grid: LinkGrid) -> None:
    """A device that takes part once answers and goes; the coordinator may look only after that."""
    one = node_id(KEYS[0])
    (asked,) = grid.push_messages([question(one)])
    message = given(state, one)
    assert message is not None
    bring(state, answer(message))
    state.deactivate_node(one)
    assert [value_of(found) for found in grid.pull_messages([asked])] == [8]


def test_a_node_that_is_shut_out_is_unknown(state: LinkState, grid: LinkGrid) -> None:
    state.shut_out(KEYS[0])
    assert state.get_node_id_by_public_key(KEYS[0]) is None
    assert set(grid.get_node_ids()) == {node_id(KEYS[1])}
    assert list(grid.push_messages([question(node_id(KEYS[0]))])) == [""]


def test_nothing_is_left_of_rounds_that_are_over(state: LinkState, grid: LinkGrid) -> None:
    one, two = (node_id(key) for key in KEYS)
    for number in range(5):
        asked = list(grid.push_messages([question(one, str(number)), question(two, str(number))]))
        message = given(state, one)  # the other one stays silent
        assert message is not None
        bring(state, answer(message))
        assert len(list(grid.pull_messages(asked))) == 1
    grid.end()
    assert len(state.object_store) == 0
    assert (state.num_message_ins(), state.num_message_res()) == (0, 0)


def test_an_error_travels_too(state: LinkState, grid: LinkGrid) -> None:
    one = node_id(KEYS[0])
    (asked,) = grid.push_messages([question(one)])
    message = given(state, one)
    assert message is not None
    made = Message(Error(2, "EgressError"), reply_to=message)
    made.metadata.__dict__["_src_node_id"] = one
    made.metadata.__dict__["_message_id"] = made.object_id
    bring(state, made)
    (found,) = grid.pull_messages([asked])
    assert found.error.reason == "EgressError"


def named(text: str, *children: ObjectTree) -> ObjectTree:
    return ObjectTree(object_id=sha256(text.encode()).hexdigest(), children=children)


def tell(state: LinkState, made: Message, tree: ObjectTree) -> list[str]:
    """Tells of an answer's parts and brings none; returns what is wanted."""
    session = state.start_session(made.metadata.run_id)
    found = state.store_message_and_object_tree(remove_content_from_message(made), tree, session)[1]
    state.brought(tree)
    return found


def folded(levels: int) -> Sequence[ObjectTree]:
    """Returns a tree that is short to tell and has 2^levels leaves: what was told is not told again."""
    if levels == 0:
        return [named("0"), named("0")]
    return [named(str(levels), *folded(levels - 1)), named(str(levels))]


def test_an_answer_of_objects_without_end_is_looked_at_in_no_time(state: LinkState, grid: LinkGrid) -> None:
    (asked,) = grid.push_messages([question(node_id(KEYS[0]))])
    message = given(state, node_id(KEYS[0]))
    assert message is not None
    made = answer(message)
    bomb = ObjectTree(object_id=made.metadata.message_id, children=folded(60))
    assert state.objects.refuses(bomb, 1000)
    assert len(tell(state, made, bomb)) > 60  # as if it had not been refused
    assert list(grid.pull_messages([asked])) == []
    state.drop(asked)
    assert len(state.object_store) == 0


@pytest.mark.parametrize("brings", [False, True])
def test_nobody_spoils_another_nodes_answer_by_what_both_have(
    state: LinkState, grid: LinkGrid, brings: bool
) -> None:
    """Both answers have the same content, so one node can tell false parts of what the other brings, too."""
    liar, honest = (node_id(key) for key in KEYS)
    asked = list(grid.push_messages([question(liar), question(honest)]))
    lie, truth = given(state, liar), given(state, honest)
    assert lie is not None
    assert truth is not None
    made, shared = answer(lie), get_object_tree(answer(truth)).children[0]
    false = ObjectTree(object_id=shared.object_id, children=[*shared.children, named("none")])
    assert state.objects.refuses(ObjectTree(object_id=made.metadata.message_id, children=[false]), 100) == ""
    tell(state, made, ObjectTree(object_id=made.metadata.message_id, children=[false]))
    if brings:
        session = state.start_session(made.metadata.run_id)
        state.preregister_object_tree(false, session)
        objects = get_all_nested_objects(answer(truth))
        for part in iterate_object_tree(shared):
            state.store_object(
                made.metadata.run_id, session, part.object_id, objects[part.object_id].deflate()
            )
    bring(state, answer(truth))
    assert [found.metadata.src_node_id for found in grid.pull_messages(asked)] == [honest]
    if brings:  # it is known by then what the object has
        assert state.objects.refuses(false, 100) == "an object has other parts elsewhere"
    for own in asked:
        state.drop(own)
    assert len(state.object_store) == 0


def test_an_answer_has_so_many_objects_and_no_more(state: LinkState, grid: LinkGrid) -> None:
    grid.push_messages([question(node_id(KEYS[0]))])
    message = given(state, node_id(KEYS[0]))
    assert message is not None
    tree = get_object_tree(answer(message))
    count = len(list(iterate_object_tree(tree)))
    assert state.objects.refuses(tree, count) == ""
    assert f"at most {count - 1} objects" in state.objects.refuses(tree, count - 1)
    twice = named("root", named("a", named("b")), named("a"))
    assert state.objects.refuses(twice, 100) == "an object has other parts elsewhere"
