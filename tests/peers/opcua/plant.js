"use strict";
// The plant: the variables of urn:foreign:plant. Every identifier is a string and the path of its folders, but for Ids.
const { DataType, VariantArrayType } = require("node-opcua-variant");
const { DataValue } = require("node-opcua-data-value");
const { StatusCode, StatusCodes } = require("node-opcua-status-code");

const URI = "urn:foreign:plant";
const MOVED_VALUE = 777; // what an index that was ours shows of another's variables

// Name under Types, data type, value. Integers beyond 2^53 are written as strings.
const TYPES = [
  ["Boolean", "Boolean", true],
  ["SByte", "SByte", -7],
  ["Byte", "Byte", 200],
  ["Int16", "Int16", -700],
  ["UInt16", "UInt16", 60000],
  ["Int32", "Int32", -70000],
  ["UInt32", "UInt32", 4000000000],
  ["Int64", "Int64", "-1099511627776"],
  ["UInt64", "UInt64", "9007199254740992"],
  ["UInt64Big", "UInt64", "9007199254740993"], // no float64 holds it
  ["Float", "Float", 0.5],
  ["Double", "Double", 2.5],
  ["NaN", "Double", "NaN"],
  ["Infinity", "Double", "Infinity"],
  ["String", "String", "warm"],
  ["NumberText", "String", "12.5"],
  ["DateTime", "DateTime", "2026-01-02T03:04:05.000Z"],
  ["ByteString", "ByteString", "0102"],
  ["Guid", "Guid", "72962B91-FA75-4AE6-8D28-B404DC7DAF63"],
  ["LocalizedText", "LocalizedText", "warm"],
];

// Name under Analog, type definition, UNECE code, display, range of the instrument or none, value.
const ANALOG = [
  ["Temperature", "AnalogItemType", "CEL", "°C", [0, 150], 71.5],
  ["Pressure", "AnalogUnitRangeType", "BAR", "bar", [0, 16], 6.25],
  ["Vibration", "AnalogItemType", "C16", "mm/s", [0, 50], 2.8],
  ["Speed", "AnalogUnitType", "RPM", "r/min", null, 1480],
  ["Odd", "AnalogUnitType", null, "widgets", null, 3], // a unit of the vendor's own: no UNECE code
];

const PACKED = { Float: Float32Array, Double: Float64Array };

// 64 bits are two words in node-opcua: [high, low].
function words64(value) {
  const bits = BigInt.asUintN(64, BigInt(value));
  return [Number(bits >> 32n), Number(bits & 0xffffffffn)];
}

function scalar(kind, value) {
  switch (kind) {
    case "Int64":
    case "UInt64":
      return words64(value);
    case "Float":
    case "Double":
      return Number(value); // also "NaN", "Infinity", which JSON cannot write
    case "DateTime":
      return new Date(value);
    case "ByteString":
      return Buffer.from(value, "hex");
    case "LocalizedText":
      return { text: value };
    default:
      return value;
  }
}

function toVariant(kind, value) {
  if (value === null || value === undefined) return { dataType: DataType.Null };
  if (!Array.isArray(value)) return { dataType: DataType[kind], arrayType: VariantArrayType.Scalar, value: scalar(kind, value) };
  const list = value.map((each) => scalar(kind, each));
  const Packed = PACKED[kind];
  return { dataType: DataType[kind], arrayType: VariantArrayType.Array, value: Packed ? Packed.from(list) : list };
}

// "Good", "UncertainLastUsableValue", "Good|Overflow": a name, and info bits of a value (OPC UA Part 4, 7.39.1).
function toStatus(text) {
  const [name, ...bits] = (text || "Good").split("|");
  const status = StatusCodes[name];
  if (!status) throw new Error(`no status is called ${name}`);
  return bits.length ? StatusCode.makeStatusCode(status, ["InfoTypeDataValue", ...bits].join(" | ")) : status;
}

function unit(code, display) {
  let unitId = -1;
  if (code) for (unitId = 0; code; code = code.slice(1)) unitId = unitId * 256 + code.charCodeAt(0);
  return { namespaceUri: "http://www.opcfoundation.org/UA/units/un/cefact", unitId, displayName: { text: display } };
}

class Plant {
  // settings: mass, history, history_period_ms, before; see tests/foreign.py
  constructor(addressSpace, settings) {
    this.space = addressSpace;
    this.kinds = new Map(); // identifier → data type of its value
    this.structures = new Map();
    for (const uri of settings.before || []) this.decoy(uri);
    this.ns = addressSpace.registerNamespace(URI);
    this.top = this.ns.addFolder("ObjectsFolder", { browseName: "Plant", nodeId: this.id("Plant") });
    this.folders = new Map([["Plant", this.top]]);
    this.simple();
    this.arrays();
    this.typed();
    this.analog();
    this.twins();
    this.kindsOfIds();
    this.access();
    this.history(settings);
    for (let at = 0; at < (settings.mass || 0); at++) this.add(`Mass.${at}`, "Double", at);
  }

  id(text) {
    return `ns=${this.ns.index};${/^[isgb]=/.test(text) ? text : "s=" + text}`;
  }

  node(text) {
    const node = this.space.findNode(this.id(text));
    if (!node) throw new Error(`the plant has no node ${text}`);
    return node;
  }

  // Every namespace before ours has variables with our names and another's values.
  decoy(uri) {
    const ns = this.space.registerNamespace(uri);
    const folder = ns.addFolder("ObjectsFolder", { browseName: "Moved", nodeId: `ns=${ns.index};s=Plant` });
    const names = TYPES.map(([name]) => `Types.${name}`);
    names.push(...ANALOG.map(([name]) => `Analog.${name}`), "Counter", "Line1.Pump.Temperature", "Line2.Pump.Temperature");
    for (const name of names) {
      ns.addVariable({
        componentOf: folder, browseName: `Other ${name}`, nodeId: `ns=${ns.index};s=${name}`, dataType: "Double",
        value: { dataType: DataType.Double, value: MOVED_VALUE },
      });
    }
  }

  // The folder of "Line1.Pump.Temperature" is Plant/Line1/Pump.
  folder(path) {
    let at = this.top;
    path.forEach((name, depth) => {
      const id = path.slice(0, depth + 1).join(".");
      if (!this.folders.has(id)) this.folders.set(id, this.ns.addFolder(at, { browseName: name, nodeId: this.id(id) }));
      at = this.folders.get(id);
    });
    return at;
  }

  add(id, kind, value, { wire = kind, stamp = undefined, ...more } = {}) {
    const plain = !/^[isgb]=/.test(id);
    const path = plain ? id.split(".") : ["Ids", id.slice(0, 1)];
    const isList = Array.isArray(value);
    const node = this.ns.addVariable({
      componentOf: this.folder(path.slice(0, -1)), browseName: path[path.length - 1], nodeId: this.id(id),
      dataType: kind, valueRank: isList ? 1 : -1, arrayDimensions: isList ? [value.length] : null,
      minimumSamplingInterval: 0, ...more,
    });
    this.kinds.set(id, wire);
    node.setValueFromSource(this.variantOf(wire, value), StatusCodes.Good, stamp);
    return node;
  }

  // node-opcua tells the subscribers of a deleted node nothing; `told`: they get Bad_NodeIdUnknown first.
  remove(id, told) {
    if (told) this.set({ node: id, value: null, status: "BadNodeIdUnknown" });
    this.ns.deleteNode(this.node(id));
    this.kinds.delete(id);
  }

  simple() {
    for (const [name, kind, value] of TYPES) this.add(`Types.${name}`, kind, value);
    this.add("Types.Duration", "Duration", 1500, { wire: "Double" }); // a subtype of Double
    this.add("Types.Number", "Number", -5, { wire: "Int16" }); // an abstract type: the value decides
    this.add("Counter", "Double", 0);
  }

  arrays() {
    this.add("Arrays.Temperatures", "Double", [20, 21, 22, 23, 24, 25, 26, 27]);
    this.add("Arrays.Spectrum", "Float", Array.from({ length: 256 }, (_, at) => at / 256));
    this.add("Arrays.Flags", "Boolean", [true, false, true, false]);
    this.add("Arrays.Empty", "Double", []);
  }

  // An enumeration, and a structure of numbers; their types stand in types.xml.
  typed() {
    const types = this.space.getNamespaceIndex("urn:foreign:types");
    this.add("Typed.Mode", `ns=${types};i=1`, 2, { wire: "Int32" });
    this.structure = this.space.findNode(`ns=${types};i=10`);
    const fields = { speed: 1480, torque: 12.5, errors: 3, running: true, name: "drive" };
    this.add("Typed.Drive", this.structure.nodeId, fields, { wire: "ExtensionObject" });
    this.add("Typed.Drives", this.structure.nodeId, [fields, { ...fields, speed: 1500 }], { wire: "ExtensionObject" });
  }

  analog() {
    for (const [name, type, code, display, range, value] of ANALOG) this.measured(`Analog.${name}`, type, code, display, range, value);
  }

  measured(id, type, code, display, range, value) {
    const path = id.split(".");
    const node = this.ns.addVariable({
      componentOf: this.folder(path.slice(0, -1)), browseName: path[path.length - 1], nodeId: this.id(id),
      typeDefinition: type, dataType: "Double", minimumSamplingInterval: 0,
    });
    const { EUInformation, Range } = require("node-opcua-types");
    const property = (browseName, dataType, Body, body) =>
      this.ns.addVariable({
        propertyOf: node, browseName: { name: browseName, namespaceIndex: 0 }, dataType, typeDefinition: "PropertyType",
        nodeId: this.id(`${id}.${browseName}`), value: { dataType: DataType.ExtensionObject, value: new Body(body) },
      });
    property("EngineeringUnits", "EUInformation", EUInformation, unit(code, display));
    if (range) property("EURange", "Range", Range, { low: range[0], high: range[1] });
    this.kinds.set(id, "Double");
    node.setValueFromSource(toVariant("Double", value));
  }

  // Two branches three folders deep that end in the same BrowseNames.
  twins() {
    for (const [line, value] of [["Line1", 41], ["Line2", 42]]) {
      this.measured(`${line}.Pump.Temperature`, "AnalogItemType", "CEL", "°C", [0, 120], value);
      this.add(`${line}.Pump.Drive.Current`, "Float", value / 10);
    }
  }

  // The other three kinds of identifier; Types and the rest are strings.
  kindsOfIds() {
    this.add("i=1001", "Double", 11);
    this.add("g=72962B91-FA75-4AE6-8D28-B404DC7DAF63", "Double", 12);
    this.add("b=UHVtcA==", "Double", 13);
  }

  access() {
    this.add("Access.WriteOnly", "Double", 1, { accessLevel: "CurrentWrite", userAccessLevel: "CurrentWrite" });
    this.add("Access.Writable", "Double", 1, { accessLevel: "CurrentRead | CurrentWrite" });
    this.add("Access.Slow", "Double", 1, { minimumSamplingInterval: 1000 });
  }

  // `samples` values 0, 1, 2 … one each period, the last of them now.
  history({ history: samples = 100, history_period_ms: period = 1000 }) {
    const stamp = (at) => new Date(now - (samples - 1 - at) * period);
    const now = Date.now();
    const access = { historizing: true, accessLevel: "CurrentRead | HistoryRead", stamp: stamp(0) };
    const node = this.add("History.Level", "Double", 0, access);
    this.space.installHistoricalDataNode(node, { maxOnlineValues: samples + 1000 });
    for (let at = 1; at < samples; at++) {
      node.setValueFromSource({ dataType: DataType.Double, value: at }, StatusCodes.Good, stamp(at));
    }
  }

  // value null: keep the value. kind: another type on the wire than the node's own. age_s null: no source time at all.
  set({ node: id, value, status, age_s: age = 0, kind, no_server_time: noServerTime, keep_value: keep }) {
    const node = this.node(id);
    const wire = kind || this.kinds.get(id);
    if (kind) node.verifyVariantCompatibility = () => {}; // a firmware that changes a type is what a test wants
    const variant = keep ? node.readValue().value : this.variantOf(wire, value);
    const now = Date.now();
    const stamp = age === null ? null : new Date(now - age * 1000);
    const data = new DataValue({
      value: variant, statusCode: toStatus(status), sourceTimestamp: stamp, serverTimestamp: noServerTime ? null : new Date(now),
    });
    if (stamp) node._internal_set_dataValue(data);
    else this.setWithoutStamp(node, data);
  }

  // node-opcua repairs a missing source timestamp with an older one, before it tells its subscribers and after.
  setWithoutStamp(node, data) {
    const { emit } = node;
    node.emit = (event, told, ...rest) => {
      if (event === "value_changed") told.sourceTimestamp = null;
      return emit.call(node, event, told, ...rest);
    };
    node._internal_set_dataValue(data);
    delete node.emit; // the prototype's is there again
    node.$dataValue.sourceTimestamp = null;
  }

  variantOf(wire, value) {
    if (wire !== "ExtensionObject" || value === null) return toVariant(wire, value);
    const build = (fields) => this.space.constructExtensionObject(this.structure, fields);
    if (!Array.isArray(value)) return { dataType: DataType.ExtensionObject, value: build(value) };
    return { dataType: DataType.ExtensionObject, arrayType: VariantArrayType.Array, value: value.map(build) };
  }

  // "Mass.*" stands for all of them.
  expand(names) {
    const all = [...this.kinds.keys()];
    return names.flatMap((name) => (name.endsWith("*") ? all.filter((id) => id.startsWith(name.slice(0, -1))) : [name]));
  }
}

module.exports = { Plant, URI, toStatus };
