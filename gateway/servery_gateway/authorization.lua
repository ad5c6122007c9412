-- Decides whether the holder of a verified token may make this call.
--
-- RULES, written before this text, maps paths to what methods.py says of them; refusal.lua and
-- claims.lua are there, too. Permission is only noted in a header, which the RBAC filter behind
-- requires: a mistake in this script, after which Envoy would go on, then refuses.

local REQUEST = "envoy.filters.http.grpc_field_extraction"

local function deny(handle, verb, resource)
  refuse(handle, "403", 7,
    "this key lacks the permission '" .. verb .. "' for " .. resource
      .. "; ask an administrator of the tenant for a key that has it",
    "ERROR_REASON_PERMISSION_DENIED", {verb = verb, resource = resource})
end

local function unknown_path(handle, path)
  local operation = handle:headers():get(":method") .. " " .. printable(path)
  refuse(handle, "404", 12,
    "there is no " .. operation .. "; docs/reference/openapi.yaml lists what there is",
    "ERROR_REASON_UNSUPPORTED", {operation = operation})
end

local function invalid_model(handle, name, value)
  local rule = "be a model id such as digits, or tenant.model outside the tenant default"
  value = printable(value)
  refuse(handle, "400", 3,
    name .. " is '" .. value .. "'; it must " .. rule,
    "ERROR_REASON_FIELD_INVALID", {field = name, value = value, rule = rule},
    {field = name, description = "must " .. rule})
end

-- The tenant and the model that a name on the inference wire means; nil if it means none.
local function parse_model(name)
  local tenant, model = string.match(name, "^([a-z][a-z0-9%-]*)%.(.*)$")
  if tenant == "default" then return nil end
  tenant, model = tenant or "default", model or name
  if #tenant > 31 or #model > 63 or not string.match(model, "^[a-z][a-z0-9%-]*$") then
    return nil
  end
  return tenant, model
end

local function matches(pattern, model)
  if string.sub(pattern, -1) == "*" then
    return string.sub(model, 1, #pattern - 1) == string.sub(pattern, 1, -2)
  end
  return pattern == model
end

local function permits(patterns, model)
  for _, pattern in ipairs(patterns or {}) do
    if model == nil or matches(pattern, model) then return true end
  end
  return false
end

-- The rule of a call over the REST form of the inference protocol, and the model its path names.
local function rest_rule(method, path)
  local any_token = {verbs = {}}
  if path == "/v2" or path == "/v2/health/live" or path == "/v2/health/ready" then
    return method == "GET" and any_token or nil
  end
  if path == "/v2/repository/index" then return method == "POST" and any_token or nil end
  local model, rest = string.match(path, "^/v2/models/([^/?]+)(.*)$")
  if model == nil then return nil end
  rest = string.gsub(rest, "^/versions/%d+", "")
  if method == "POST" and rest == "/infer" then
    return {verbs = {"infer"}, model_field = "model_name"}, model
  end
  if method == "GET" and (rest == "" or rest == "/ready" or rest == "/config" or rest == "/stats") then
    return {verbs = {"infer", "read"}, model_field = "name"}, model
  end
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path")
  local rule, path_model = RULES[path], nil
  if rule == nil and string.sub(path, 1, 3) == "/v2" then
    rule, path_model = rest_rule(headers:get(":method"), path)
  end
  if rule == nil then
    if string.sub(path, 1, 4) == "/v1/" then return unknown_path(handle, path) end
    return refuse(handle, "403", 7,
      "nobody may call " .. printable(path) .. " through the gateway; reflection lists what there is",
      "ERROR_REASON_PERMISSION_DENIED", {verb = "call", resource = printable(path)})
  end
  if rule.public then return end

  local claims = claims_of(headers:get("x-servery-claims"))
  local resource, tenant, model = "tenants/" .. claims.tenant, claims.tenant, nil
  if rule.model_field then
    local extracted = handle:streamInfo():dynamicMetadata():get(REQUEST) or {}
    local values = extracted[rule.model_field] or {}
    local name = path_model or values[1] or ""
    tenant, model = parse_model(name)
    if model == nil then return invalid_model(handle, rule.model_field, name) end
    resource = "tenants/" .. tenant .. "/models/" .. model
    headers:replace("x-servery-model", name)
  end

  local allowed = #rule.verbs == 0
  for _, verb in ipairs(rule.verbs) do
    allowed = allowed or permits(claims.permissions[verb], model)
  end
  if not allowed or tenant ~= claims.tenant then
    return deny(handle, rule.verbs[1], resource)
  end
  headers:replace("x-servery-allowed", resource)
end
