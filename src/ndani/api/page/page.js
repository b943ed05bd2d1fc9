"use strict";

// Shows /openapi.json. All of its text is set as text, never as HTML.

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function resolved(schema, all) {
  const name = schema.$ref ? schema.$ref.split("/").pop() : "";
  return name ? { name, ...all[name] } : schema;
}

// The type of a schema in a few words, with links to the types that it names.
function typeOf(schema, all) {
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const link = element("a", name);
    link.href = "#type-" + name;
    return [link];
  }
  const alternatives = schema.anyOf || schema.oneOf;
  if (alternatives) return alternatives.flatMap((one, at) => [...(at ? [" or "] : []), ...typeOf(one, all)]);
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array") return ["array of ", ...(schema.items ? typeOf(schema.items, all) : ["anything"])];
  if (schema.type === "object" && typeof schema.additionalProperties === "object") {
    return ["object of ", ...typeOf(schema.additionalProperties, all)];
  }
  const limits = [["minimum", "≥"], ["maximum", "≤"], ["minLength", "length ≥"], ["maxLength", "length ≤"]]
    .filter(([key]) => schema[key] !== undefined).map(([key, sign]) => `${sign} ${schema[key]}`);
  return [[schema.type || "anything", ...limits].join(", ")];
}

function fields(schema, all) {
  const parts = resolved(schema, all);
  const made = element("div");
  if (parts.description) made.append(element("p", parts.description));
  if (!parts.properties) {
    made.append(element("p", "", ...typeOf(parts.name ? { ...parts, $ref: undefined } : schema, all)));
    return made;
  }
  const body = element("tbody");
  for (const [name, property] of Object.entries(parts.properties)) {
    const required = (parts.required || []).includes(name) ? " (required)" : "";
    body.append(element("tr", "", element("td", "", element("code", name), required),
      element("td", "", ...typeOf(property, all)), element("td", property.description || "")));
  }
  const head = element("thead", "", element("tr", "", ...["Field", "Type", ""].map((text) => {
    const cell = element("th", text);
    cell.scope = "col";
    return cell;
  })));
  const wrapped = element("div", "", element("table", "", head, body));
  wrapped.className = "table";
  wrapped.tabIndex = 0;
  made.append(wrapped);
  return made;
}

function contents(content, all) {
  return Object.entries(content || {}).flatMap(([media, { schema, "x-item-schema": item }]) => [
    element("p", item ? `${media}: a stream of` : `${media}:`),
    ...(item || schema ? [item || schema].flatMap((one) => (one.anyOf || [one]).map((each) => fields(each, all))) : []),
  ]);
}

function operation(method, path, described, all) {
  const badge = element("span", method.toUpperCase());
  badge.className = "method";
  const words = element("span", described.summary);
  words.className = "summary";
  const made = element("details", "", element("summary", "", badge, element("code", path), words));
  made.id = described.operationId;
  made.dataset.words = `${method} ${path} ${described.summary} ${described.tags.join(" ")}`.toLowerCase();
  // Its inside is made when it is first opened.
  made.addEventListener("toggle", () => {
    if (made.childElementCount > 1) return;
    for (const parameter of described.parameters) {
      made.append(element("p", "", element("code", parameter.name), ` in the ${parameter.in}: `, ...typeOf(parameter.schema, all)));
    }
    if (described.requestBody) {
      made.append(element("h3", described.requestBody.required ? "Body" : "Body (optional)"));
      made.append(...contents(described.requestBody.content, all));
    }
    for (const [status, response] of Object.entries(described.responses)) {
      made.append(element("h3", `${status === "default" ? "Any other status" : "Status " + status}: ${response.description}`));
      made.append(...contents(response.content, all));
    }
  });
  return made;
}

function show(description) {
  const all = description.components.schemas;
  const main = document.getElementById("routes");
  const operations = [];
  for (const tag of description.tags) {
    const section = element("section", "", element("h2", tag.description));
    for (const [path, methods] of Object.entries(description.paths)) {
      for (const [method, described] of Object.entries(methods)) {
        if (described.tags.includes(tag.name)) {
          const made = operation(method, path, described, all);
          operations.push(made);
          section.append(made);
        }
      }
    }
    main.append(section);
  }
  const types = element("section", "", element("h2", "Types"));
  for (const name of Object.keys(all).sort()) {
    const made = element("details", "", element("summary", "", element("code", name)), fields(all[name], all));
    made.id = "type-" + name;
    types.append(made);
  }
  main.append(types);
  filterBy(operations);
  openTarget();
}

function filterBy(operations) {
  const field = document.getElementById("filter");
  const apply = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const made of operations) {
      made.hidden = !words.every((word) => made.dataset.words.includes(word));
      shown += made.hidden ? 0 : 1;
    }
    document.getElementById("count").textContent = `${shown} of ${operations.length} routes`;
  };
  field.addEventListener("input", apply);
  apply();
}

// A link to a type or a route opens it.
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") {
    target.open = true;
    target.querySelector("summary").focus();
    target.scrollIntoView();
  }
}

addEventListener("hashchange", openTarget);
fetch("/openapi.json")
  .then((response) => response.json())
  .then(show)
  .catch(() => { document.getElementById("count").textContent = "The description could not be read; reload the page."; });
