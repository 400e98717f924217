"""Keys of topology files, declared once, as fields of dataclasses.

A :class:`Block` is a mapping of a topology file. Its fields with :func:`key` are its keys: the JSON
schema, the reader and ``to_dict`` derive from them. A :class:`Section` is the top-level mapping of
a role or a provider, and comes with it. These are imported when a file names them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast

from testbed import registry
from testbed.errors import MachineError
from testbed.topology import shapes, tree

if TYPE_CHECKING:
    from testbed.nodes.base import Provider
    from testbed.roles.base import Role
    from testbed.topology.model import Node, Topology
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: A network's name or ethN, for all nodes or by node; empty for the network that they share.
Underlay: TypeAlias = "str | Mapping[str, str]"

P = TypeVar("P", bound="Block")
S = TypeVar("S", bound="Section")

_KEY = "testbed.key"
_ROLES = "testbed.roles"
_UNSET: Any = object()


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a mapping: its description and the shape of its value.

    ``always`` keeps an empty value in ``to_dict``. ``shown`` is the default in the JSON schema, if
    it is not the field's own. A key of testbed's ``own`` is in records of labs, and in no file.
    A ``live`` key of a node can change while the node runs.
    """

    description: str
    shape: shapes.Shape[Any]
    required: bool = False
    always: bool = False
    shown: Any = _UNSET
    own: bool = False
    live: bool = False


def key(
    shape: shapes.Shape[Any],
    description: str,
    *,
    name: str = "",
    default: Any = _UNSET,
    required: bool = False,
    always: bool = False,
    shown: Any = _UNSET,
    own: bool = False,
    live: bool = False,
) -> Any:
    """Declare a field of a :class:`Block` as a key of topology files.

    ``name`` is the key, if it is not the field's name. The value of a missing or invalid key is
    ``default``; without a default, the whole mapping is left out. A dict as default is copied.
    """
    metadata = {_KEY: (name, Key(description, shape, required, always, shown, own, live))}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    if default is _UNSET:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def role_keys(attribute: str) -> Any:
    """Declare a field for the mappings that roles and providers declare, by their names.

    ``attribute`` is the class variable of :class:`testbed.roles.base.Role` and
    :class:`testbed.nodes.base.Provider` with the class: ``section`` or ``node_section``.
    """
    return dataclasses.field(default_factory=dict, metadata={_ROLES: attribute})


class Block:
    """A mapping of a topology file; a subclass is a frozen dataclass."""

    __slots__ = ()

    #: The description of the key of a role's mapping.
    about: ClassVar[str] = ""
    #: Hints for keys that people look for here and that belong elsewhere.
    elsewhere: ClassVar[Mapping[str, str]] = {}
    #: More rules of the JSON schema, which hold for several keys.
    rules: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        """Return the part with these values; a subclass can complete or check them.

        ``given`` has no entry for a missing or invalid key. Return None without a required value.
        """
        del draft
        return cls(**given) if keys_of(cls).sufficient <= given.keys() else None

    def to_dict(self) -> dict[str, Any]:
        """Return the part in the form of a file, with all defaults.

        None, False and empty values are left out.
        """
        out: dict[str, Any] = {}
        for field in dataclasses.fields(cast("Any", self)):
            value = getattr(self, field.name)
            if attribute := field.metadata.get(_ROLES):
                del attribute
                out |= {name: part.to_dict() for name, part in value.items()}
            elif found := field.metadata.get(_KEY):
                name, key = found
                if key.always or not _is_empty(value):
                    plain = key.shape.plain(value)
                    # Parts that another key has given are in none.
                    if key.always or plain or not isinstance(value, (tuple, Mapping)):
                        out[name or field.name] = plain
        return out

    def fixed(self) -> dict[str, Any]:
        """Return the settings that only a new node can have, in the form of a file.

        A node is created again when they change in its file. By default they are all keys that are
        not ``live``.
        """
        own = keys_of(type(self)).own
        return {k: v for k, v in self.to_dict().items() if k not in own or not own[k].live}


class Section(Block):
    """The top-level mapping of a role or a provider, with its name as the key."""

    __slots__ = ()

    #: The name of the role or the provider.
    role: ClassVar[str]
    #: A lab with the role has the section, with all defaults, even if the file does not.
    implied: ClassVar[bool] = True

    @classmethod
    def find(cls, topology: Topology) -> Self | None:
        """Return the section of a topology, or None."""
        found = topology.sections.get(cls.role)
        return found if isinstance(found, cls) else None

    @classmethod
    def of(cls, topology: Topology) -> Self:
        """Return the section of a topology, which must have one."""
        found = cls.find(topology)
        assert found is not None, f"a checked topology with the role {cls.role} has its section"
        return found

    def software(self) -> frozenset[str]:
        """Return names for parts of the software that this lab has, such as plugins."""
        return frozenset()

    def image_names(self) -> tuple[str, ...]:
        """Return the images that the file asks for, besides those of containers."""
        return ()

    def meshes(self, topology: Topology) -> Iterable[tuple[Underlay, tuple[Node, ...]]]:  # noqa: ARG002  for roles whose nodes communicate
        """Return groups of nodes that communicate, each with its ``interface`` setting."""
        return ()

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:  # noqa: ARG002  for sections that differ from node to node
        """Return what the digest of a node with the role consists of, by unique names.

        A node whose digest changes is created again.
        """
        return {self.role: self.to_dict()}


class Draft:
    """A topology file while it is read."""

    def __init__(self, read: Reader, root: tree.Mapping) -> None:
        self.read = read
        self.root = root
        self.nodes: Mapping[str, Node] = {}
        #: The mapping that is being read; empty if it is not in the file.
        self.body = tree.Mapping((), 0, 0)
        self._sections: dict[str, Section | None] = {}

    def with_role(self, role: str) -> list[str]:
        """Return the names of the nodes with a role."""
        return [node.name for node in self.nodes.values() if role in node.roles]

    def section(self, kind: type[S]) -> S | None:
        """Return another role's section; it is read first."""
        found = self._section(kind)
        return found if isinstance(found, kind) else None

    def _section(self, kind: type[Section]) -> Section | None:
        if kind.role not in self._sections:
            self._sections[kind.role] = None  # for sections that require each other
            at = self.root.get(kind.role)
            if at is not None or (kind.implied and self.with_role(kind.role)):
                self._sections[kind.role] = self._read(kind, at)
        return self._sections[kind.role]

    def _read(self, kind: type[Section], at: Tree | None) -> Section | None:
        if at is not None and not isinstance(at, tree.Mapping):
            self.read.mapping(at, keys_of(kind))
            at = None
            if not kind.implied:
                return None
        return read_block(self, kind, at or tree.Mapping((), 0, 0))

    def node_sections(self) -> dict[str, Block]:
        """Return the mappings of roles and providers in the node that is being read."""
        out: dict[str, Block] = {}
        for name, entry in self.body.entries.items():
            kind = section_of(name, "node_section")
            if kind is not None and (part := Nested(kind).read_in(self, entry.value)) is not None:
                out[name] = part
        return out

    def sections(self) -> dict[str, Section]:
        """Return the sections of all roles and providers that the file names, by their names."""
        named = {role for node in self.nodes.values() for role in node.roles}
        out = {}
        for name in _owners():
            if name in named or name in self.root.entries:
                kind = section_of(name, "section")
                if kind is not None and (found := self._section(kind)) is not None:
                    out[name] = found
        return out


def role_of(name: str) -> Role | None:
    """Return a role by name; None for an unknown role, or one that cannot be loaded.

    The latter is reported when the lab is created.
    """
    if name not in registry.ROLES:
        return None
    try:
        return registry.ROLES[name]
    except MachineError:
        return None


def _provider_of(name: str) -> type[Provider] | None:
    """Return a provider by name; None as by :func:`role_of`."""
    if name not in registry.PROVIDERS:
        return None
    try:
        return registry.PROVIDERS[name]
    except MachineError:
        return None


def section_of(name: str, attribute: str) -> type[Any] | None:
    """Return the class of a mapping with a role's or a provider's name.

    ``attribute`` is ``section`` or ``node_section``. A role precedes a provider of its name.
    """
    found: type[Any] | None = getattr(role_of(name), attribute, None)
    return found or getattr(_provider_of(name), attribute, None)


def _owners() -> Iterable[str]:
    """Return the names of everything that may have a mapping."""
    return dict.fromkeys([*registry.ROLES, *registry.PROVIDERS])


def _may_have(name: str, attribute: str) -> bool:
    """Tell whether there is such a mapping; an owner that cannot be loaded may have it."""
    if name in registry.ROLES and role_of(name) is None:
        return True
    if name in registry.PROVIDERS and _provider_of(name) is None:
        return True
    return section_of(name, attribute) is not None


class Keys(Mapping[str, Key]):
    """The known keys of a mapping: its own, and those of roles, which are imported on demand."""

    def __init__(self, kind: type[Block]) -> None:
        self.own: dict[str, Key] = {}
        self.fields: dict[str, str] = {}  #: key to field
        self.defaults: dict[str, Any] = {}
        self.sufficient: set[str] = set()  #: the fields without a default
        self._order: list[str] = []
        self.roles = ""  #: the attribute of roles with more keys
        self.elsewhere = kind.elsewhere
        self.required: list[str] = []
        for field in dataclasses.fields(cast("Any", kind)):
            missing = dataclasses.MISSING
            if field.default is missing and field.default_factory is missing:
                self.sufficient.add(field.name)
            if attribute := field.metadata.get(_ROLES):
                self.roles = attribute
                self._order.append("")
            elif found := field.metadata.get(_KEY):
                name, key = found[0] or field.name, found[1]
                self.own[name] = key
                if key.required:
                    self.required.append(name)
                self.fields[name] = field.name
                self._order.append(name)
                if field.default is not dataclasses.MISSING:
                    self.defaults[name] = field.default

    def __getitem__(self, name: str) -> Key:
        if name in self.own:
            return self.own[name]
        kind = section_of(name, self.roles) if self.roles else None
        if kind is None:
            raise KeyError(name)
        return Key(kind.about, Nested(kind))

    def __contains__(self, name: object) -> bool:
        if name in self.own:
            return True
        return bool(self.roles) and isinstance(name, str) and _may_have(name, self.roles)

    def __iter__(self) -> Iterator[str]:
        for name in self._order:
            if name:
                yield name
            else:
                yield from (one for one in _owners() if section_of(one, self.roles))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def keys_of(kind: type[Block]) -> Keys:
    """Return the keys of a part."""
    if kind not in _KEYS:
        _KEYS[kind] = Keys(kind)
    return _KEYS[kind]


_KEYS: dict[type[Block], Keys] = {}


def _is_empty(value: object) -> bool:
    return value is None or value is False or (not value and isinstance(value, (str, tuple, dict)))


def read_block(draft: Draft, kind: type[P], body: tree.Mapping, **given: Any) -> P | None:
    """Read the values of a mapping; ``given`` are fields that are no keys of it."""
    keys = keys_of(kind)
    draft.read.mapping(body, keys)
    for name, key in keys.own.items():
        if name not in body.entries:
            continue
        at = body.entries[name].value
        if (value := _value(draft, key.shape, at)) is not None:
            given[keys.fields[name]] = value
    before, draft.body = draft.body, body
    try:
        return kind.make(given, draft)
    finally:
        draft.body = before


def _value(draft: Draft, shape: shapes.Shape[Any], at: Tree) -> Any:
    if isinstance(shape, Composed):
        return shape.read_in(draft, at)
    return shape.read(draft.read, at)


class Composed(shapes.Shape[Any]):
    """A shape whose values are parts."""

    def read_in(self, draft: Draft, at: Tree) -> Any:
        """Return the value, or None for an invalid one."""
        raise NotImplementedError

    def read(self, read: Reader, at: Tree | None) -> Any:
        return None if at is None else self.read_in(Draft(read, tree.Mapping((), 0, 0)), at)


@dataclass(eq=False, repr=False)
class Nested(Composed, Generic[P]):
    """A mapping."""

    kind: type[P]

    def schema(self) -> dict[str, Any]:
        return schema_of(self.kind)

    def read_in(self, draft: Draft, at: Tree) -> P | None:
        body = at if isinstance(at, tree.Mapping) else None
        if body is None:
            draft.read.mapping(at, keys_of(self.kind))
            return None
        return read_block(draft, self.kind, body)

    def plain(self, value: P) -> dict[str, Any]:
        return value.to_dict()


@dataclass(eq=False, repr=False)
class Named(Composed, Generic[P]):
    """Parts by name; the field ``name`` of a part is its key.

    Entries with an invalid name are included, so that problems in them are reported, too. An entry
    that is no mapping is left out, unless it can be ``hollow``: with a name alone.
    """

    names: shapes.Name
    kind: type[P]
    hollow: bool = False
    one: str = ""  #: what at least one entry is, and the hint for none
    hint: str = ""
    foreign: shapes.Name | None = None  #: the names in labs of another tool's files
    bare: bool = False  #: a name without a value is an entry, too, as in Compose

    def schema(self) -> dict[str, Any]:
        least = {"minProperties": 1} if self.one else {}
        value = schema_of(self.kind)
        if self.bare:
            value = {"anyOf": [value, {"type": "null"}]}
        return shapes.table(self.names.schema(), value) | least

    def read_in(self, draft: Draft, at: Tree) -> dict[str, P]:
        read, names = draft.read, self.names
        if self.foreign is not None and "foreign" in draft.root.entries:
            names = self.foreign
        out: dict[str, P] = {}
        found = read.table(at, empty=not self.one)
        for entry in found.entries.values() if found else ():
            read.name(entry.key, names.what, names.pattern, names.limit, taken=names.taken)
            name, body = entry.key.text, entry.value
            if isinstance(body, tree.Mapping):
                part = read_block(draft, self.kind, body, name=name)
            elif self.bare and isinstance(body, tree.Scalar) and body.value is None:
                part = self.kind.make({"name": name}, draft)
            else:
                read.mapping(body, keys_of(self.kind))
                part = self.kind.make({"name": name}, draft) if self.hollow else None
            if part is not None:
                out[name] = part
        if self.one and found and not (found.entries or read.problems.touched(*at.path)):
            read.problems.add(at, self.one, "none", self.hint)
        return out

    def plain(self, value: Mapping[str, P]) -> dict[str, Any]:
        return {name: part.to_dict() for name, part in value.items()}


@dataclass(eq=False, repr=False)
class Listed(Composed, Generic[P]):
    """A list of parts; ``nothing`` stands for an invalid one, so that positions stay."""

    kind: type[P]
    wanted: str
    nothing: P
    count: int = 0  #: the exact number of items, if there is one
    counted: str = ""  #: the number in words, and the hint for another one
    hint: str = ""

    def schema(self) -> dict[str, Any]:
        count = {"minItems": self.count, "maxItems": self.count} if self.count else {}
        return {"type": "array", "items": schema_of(self.kind), **count}

    def read_in(self, draft: Draft, at: Tree) -> tuple[P, ...]:
        nested = Nested(self.kind)
        items = draft.read.items(at, self.wanted)
        found = [nested.read_in(draft, item) or self.nothing for item in items]
        if self.count and isinstance(at, tree.Sequence) and len(found) != self.count:
            draft.read.problems.add(at, self.counted, str(len(found)), self.hint)
        if not self.count:
            return tuple(found)
        return tuple([*found, *[self.nothing] * self.count][: self.count])

    def plain(self, value: tuple[P, ...]) -> list[Any]:
        return [part.to_dict() for part in value]


def schema_of(kind: type[Block]) -> dict[str, Any]:
    """Return the JSON schema of a mapping, with the keys of all roles that can be loaded."""
    keys = keys_of(kind)
    properties: dict[str, Any] = {}
    for name, key in keys.items():
        if key.own:
            continue
        properties[name] = {"description": key.description, **key.shape.schema()}
        default = key.shown
        if default is _UNSET:
            own = keys.defaults.get(name)
            shown = own is not None and (own is False or not _is_empty(own))
            default = key.shape.plain(own) if shown else None
        if default is not None:
            properties[name]["default"] = default
    out = shapes.block(properties)
    required = list(keys.required)
    return out | ({"required": required} if required else {}) | dict(kind.rules)
