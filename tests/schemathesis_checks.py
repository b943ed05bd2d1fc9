"""A check for schemathesis: each value of a stream has the shape that its description says (`x-item-schema`)."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import schemathesis


@schemathesis.check
def items_of_streams(ctx: Any, response: Any, case: Any) -> None:
    """Lines of JSON, or the data of events, are values of the described schema, or one of the errors of this dialect."""
    media = next(iter(response.headers.get("content-type", [])), "").partition(";")[0]
    raw = case.operation.schema.raw_schema
    # Methods that no route has are tried too.
    described = raw["paths"][case.path].get(case.method.lower(), {}).get("responses", {})
    wanted = described.get(str(response.status_code), {}).get("content", {}).get(media, {}).get("x-item-schema")
    if wanted is None:
        return
    error = described["default"]["content"]["application/json"]["schema"]
    schema = {"anyOf": [wanted, error], "components": raw["components"]}
    validator = jsonschema_rs.validator_for(schema)
    text = response.content.decode()
    lines = text.splitlines() if media.endswith("ndjson") else [x[6:] for x in text.splitlines() if x.startswith("data: ")]
    for line in lines:
        if line != "[DONE]":
            validator.validate(json.loads(line))
