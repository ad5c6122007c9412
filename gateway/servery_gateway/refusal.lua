-- How scripts refuse a call: as our own servers would, with the ErrorInfo of servery.errors.v1, in the
-- form that the caller speaks.

-- Whether this is JSON for one of our own services, which Envoy has made a gRPC call of if it could.
local function is_json(headers)
  return headers:get("x-envoy-original-path") ~= nil
    or string.sub(headers:get(":path"), 1, 4) == "/v1/"
end

local function varint(n)
  local out = ""
  while n >= 128 do
    out = out .. string.char(n % 128 + 128)
    n = math.floor(n / 128)
  end
  return out .. string.char(n)
end

-- A length-delimited protobuf field; its number must be below 16.
local function field(number, bytes)
  return string.char(number * 8 + 2) .. varint(#bytes) .. bytes
end

local function any(name, message)
  return field(1, "type.googleapis.com/" .. name) .. field(2, message)
end

local function printable(text)
  return (string.sub(text, 1, 100):gsub("[^\32-\126]", "?"))
end

local function quoted(text)
  return '"' .. text:gsub('[\\"]', "\\%0") .. '"'
end

-- A google.rpc.Status as JSON.
local function status_json(code, message, reason, metadata, violation)
  local pairs_json = {}
  for key, value in pairs(metadata) do
    table.insert(pairs_json, quoted(key) .. ":" .. quoted(value))
  end
  local details = '{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":' .. quoted(reason)
    .. ',"domain":"servery","metadata":{' .. table.concat(pairs_json, ",") .. "}}"
  if violation then
    details = details .. ',{"@type":"type.googleapis.com/google.rpc.BadRequest","fieldViolations":[{'
      .. '"field":' .. quoted(violation.field)
      .. ',"description":' .. quoted(violation.description) .. "}]}"
  end
  return '{"code":' .. code .. ',"message":' .. quoted(message) .. ',"details":[' .. details .. "]}"
end

local function refuse(handle, http_status, code, message, reason, metadata, violation)
  local headers, json = handle:headers(), nil
  if string.sub(headers:get(":path"), 1, 3) == "/v2" then
    json = '{"error": ' .. quoted(message) .. "}"
  elseif is_json(headers) then
    json = status_json(code, message, reason, metadata, violation)
  end
  if json then
    return handle:respond(
      {[":status"] = http_status, ["content-type"] = "application/json"}, json)
  end
  local info = field(1, reason) .. field(2, "servery")
  for key, value in pairs(metadata) do
    info = info .. field(3, field(1, key) .. field(2, value))
  end
  local status = "\8" .. string.char(code) .. field(2, message)
    .. field(3, any("google.rpc.ErrorInfo", info))
  if violation then
    local bad_request = field(1, field(1, violation.field) .. field(2, violation.description))
    status = status .. field(3, any("google.rpc.BadRequest", bad_request))
  end
  handle:respond({
    [":status"] = http_status,
    ["grpc-status"] = tostring(code),
    ["grpc-status-details-bin"] = handle:base64Escape(status),
  }, message)
end

