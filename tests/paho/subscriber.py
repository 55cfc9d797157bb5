"""What a subscriber in Python sees of a running samclipd: paho-mqtt as client, jsonschema against the published schemas.

Connects once until all states were said, then anew: what is retained must be there at once. Ends well once everything has come,
and valid; else says what is missing or wrong and ends with 1. Commands of Home Assistant's switch are sent too.

    subscriber.py --port 1883 --version 5 --schemas src/message/schemas [--user USER --password PASSWORD]
"""

import argparse
import json
import pathlib
import queue
import sys
import time

import jsonschema
import paho.mqtt.client as mqtt

CAMERA, QUERY = "yard", "red"
LARGE = 1_000_000


class Look:
    """One connection that hears everything below samclip and homeassistant."""

    def __init__(self, given, name):
        protocol = {"3.1.1": mqtt.MQTTv311, "5": mqtt.MQTTv5}[given.version]
        arguments = {"client_id": name, "protocol": protocol}
        # the second version of the library asks for the shape of its callbacks
        if hasattr(mqtt, "CallbackAPIVersion"):
            arguments["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        self.client = mqtt.Client(**arguments)
        if given.user:
            self.client.username_pw_set(given.user, given.password)
        self.heard = queue.Queue()
        self.client.on_connect = lambda client, *_: client.subscribe([("samclip/#", 1), ("homeassistant/#", 1)])
        self.client.on_message = lambda _client, _data, message: self.heard.put(message)
        self.client.connect("127.0.0.1", given.port)
        self.client.loop_start()

    def next(self, until):
        try:
            return self.heard.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def end(self):
        self.client.disconnect()
        self.client.loop_stop()


class Expected:
    """What has to come. Each entry is taken off when it has."""

    def __init__(self, schemas):
        self.schema = {}
        for name in ("frame", "event", "stats", "query"):
            schema = json.loads((schemas / f"{name}.json").read_text())
            validator = jsonschema.validators.validator_for(schema)
            validator.check_schema(schema)
            self.schema[name] = validator(schema)
        camera = f"samclip/{CAMERA}"
        # topic: (retained, QoS, what the body is checked with)
        self.topics = {
            "samclip/available": (True, 1, self.text("online")),
            f"{camera}/status/detect": (True, 1, self.text("online")),
            f"{camera}/detect/state": (True, 1, self.text("ON")),
            f"{camera}/background/state": (True, 1, lambda body: json.loads(body) and None),
            f"{camera}/{QUERY}": (True, 1, self.text("1")),
            f"{camera}/{QUERY}/active": (True, 1, lambda body: None if body in (b"0", b"1") else "expected 0 or 1"),
            f"{camera}/{QUERY}/snapshot": (True, 0, lambda body: None if body[:2] == b"\xff\xd8" else "no JPEG"),
            f"{camera}/query/{QUERY}/state": (True, 1, self.valid("query")),
            f"{camera}/frame": (False, 0, self.valid("frame")),
            f"{camera}/{QUERY}/mask": (False, 0, lambda body: None if body[1:4] == b"PNG" else "no PNG"),
            "samclip/events": (False, 1, self.valid("event")),
            "samclip/stats": (False, 0, self.valid("stats")),
            "samclip/large": (False, 0, lambda body: None if len(body) == LARGE else f"{len(body)} bytes"),
            f"homeassistant/device/samclipd-{CAMERA}/config": (True, 1, self.discovered),
        }
        self.missing = set(self.topics)
        self.bodies = {}
        self.switch = None
        self.wrong = []

    @staticmethod
    def text(wanted):
        return lambda body: None if body == wanted.encode() else f"{body!r}, expected {wanted}"

    def valid(self, name):
        def check(body):
            return next((error.message for error in self.schema[name].iter_errors(json.loads(body))), None)

        return check

    def discovered(self, body):
        """Every topic of every entity has to come, and the switch has to answer."""
        device = json.loads(body)
        named = {entry["topic"] for entry in device["availability"]}
        for name, entity in device["components"].items():
            topics = [entity[key] for key in ("state_topic", "image_topic") if key in entity]
            if not topics:
                return f"{name} reads no topic"
            named.update(topics)
            if entity["platform"] == "switch":
                self.switch = entity["command_topic"], entity["state_topic"]
        if self.switch is None:
            return "no switch"
        self.missing |= named - set(self.bodies)
        self.missing |= {"OFF", "ON again"}
        return None

    def take(self, message):
        topic = message.topic
        first = topic not in self.bodies
        self.bodies[topic] = message.payload
        retained, qos, check = self.topics.get(topic, (message.retain, message.qos, lambda _: None))
        commanded = self.switch is not None and topic.startswith(f"samclip/{CAMERA}/")
        problem = None
        # a switch that was used changes states, and what comes then is new
        if not commanded or topic.endswith("/frame"):
            problem = check(message.payload)
        if first and (bool(message.retain), message.qos) != (retained, qos):
            problem = f"retained {message.retain} QoS {message.qos}, expected {retained} {qos}"
        if problem:
            self.wrong.append(f"{topic}: {problem}")
        self.missing.discard(topic)


def look(given):
    until = time.monotonic() + given.patience
    expected = Expected(given.schemas)
    unsaid = {topic for topic, (retained, _, _) in expected.topics.items() if retained}
    first = Look(given, "paho-first")
    while unsaid and (message := first.next(until)):
        _, _, check = expected.topics.get(message.topic, (False, 0, None))
        # a camera may say before that it is offline
        if message.topic in unsaid and (message.topic.startswith("homeassistant/") or check(message.payload) is None):
            unsaid.discard(message.topic)
    first.end()
    if unsaid:
        return [f"{topic} is not said" for topic in sorted(unsaid)]
    second = Look(given, "paho-second")
    sent = None
    while expected.missing and not expected.wrong:
        message = second.next(until)
        if message is None:
            return [f"{topic} does not come" for topic in sorted(expected.missing)]
        expected.take(message)
        if expected.missing == {"OFF", "ON again"} and sent is None:
            sent = "OFF"
            second.client.publish(expected.switch[0], sent, qos=1)
        elif sent and (message.topic, message.payload) == (expected.switch[1], sent.encode()):
            expected.missing.discard("OFF" if sent == "OFF" else "ON again")
            if sent == "OFF":
                sent = "ON"
                second.client.publish(expected.switch[0], sent, qos=1)
    second.end()
    return expected.wrong


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--version", choices=("3.1.1", "5"), required=True)
    arguments.add_argument("--schemas", type=pathlib.Path, required=True)
    arguments.add_argument("--user")
    arguments.add_argument("--password")
    arguments.add_argument("--patience", type=float, default=60.0, help="seconds")
    problems = look(arguments.parse_args())
    print("\n".join(problems) or "all is there")
    sys.exit(1 if problems else 0)


main()
