-- Finds out who calls where no token of our own says it, and tells inference how much of a caller may
-- be in flight. Of our own tokens, the filter before has written the claims into headers.
--
-- Written before this text: IN_FLIGHT maps tenants, keys and identities to numbers, REVOKED holds
-- identities, PUBLIC paths that need none, ISSUERS and CERTIFICATES are what identities.py reads. What
-- is found is written into the same headers, so that the filters behind need not tell them apart. A
-- mistake in this script, after which Envoy would go on, leaves a call without claims, which is then
-- refused.

local TOKEN = "envoy.filters.http.jwt_authn"

-- What may stand in a resource name as it is; the rest is written as %XX.
local function escaped(text)
  return (string.sub(text, 1, 200):gsub("[^%w%-._~@:]", function(character)
    return string.format("%%%02X", string.byte(character))
  end))
end

-- The claim at a path of names; nil if there is none.
local function dig(claims, path)
  for _, name in ipairs(path) do
    if type(claims) ~= "table" then return nil end
    claims = claims[name]
  end
  return claims
end

local function words(value)
  if type(value) == "table" then return value end
  local found = {}
  if type(value) == "string" then
    for word in string.gmatch(value, "%S+") do table.insert(found, word) end
  end
  return found
end

local function add(permissions, more)
  for verb, models in pairs(more) do
    permissions[verb] = permissions[verb] or {}
    for _, model in ipairs(models) do table.insert(permissions[verb], model) end
  end
end

-- Who the company's issuer says it is, and what that is worth here; nil if it is worth nothing.
local function by_issuer(issuer, claims)
  local subject = claims.sub
  if type(subject) ~= "string" or subject == "" then return nil, "without `sub`" end
  local identity = issuer.name .. ":" .. escaped(subject)
  local tenant = issuer.tenant
  if tenant == nil then
    local value = dig(claims, issuer.tenant_claim)
    tenant = type(value) == "string" and issuer.tenants[value] or nil
  end
  local permissions = {}
  for _, role in ipairs(words(dig(claims, issuer.roles_claim))) do
    if type(role) == "string" then add(permissions, issuer.roles[role] or {}) end
  end
  if tenant == nil or next(permissions) == nil then return nil, identity end
  return {tenant = tenant, permissions = permissions}, identity
end

local function fits(pattern, uri)
  if string.sub(pattern, -1) == "*" then
    return string.sub(uri, 1, #pattern - 1) == string.sub(pattern, 1, -2)
  end
  return pattern == uri
end

-- Who the client certificate says it is; the first entry that fits counts.
local function by_certificate(handle)
  local connection = handle:streamInfo():downstreamSslConnection()
  -- One that is not good gets no connection. `peerCertificateValidated` would be false where a session
  -- is resumed, with the certificate of its beginning.
  if connection == nil or not connection:peerCertificatePresented() then return nil end
  local uris = connection:uriSanPeerCertificate()
  if #uris ~= 1 then return nil, "a certificate without exactly one URI" end
  for _, known in ipairs(CERTIFICATES) do
    if fits(known.uri, uris[1]) then return known, escaped(uris[1]) end
  end
  return nil, escaped(uris[1])
end

local function identify(handle, verified)
  for _, issuer in ipairs(ISSUERS) do
    local claims = verified[issuer.key]
    if claims ~= nil then return by_issuer(issuer, claims) end
  end
  return by_certificate(handle)
end

-- The claims as JSON; nothing in them needs to be escaped.
local function json(claims)
  local verbs = {}
  for verb, models in pairs(claims.permissions) do
    table.insert(verbs, '"' .. verb .. '":["' .. table.concat(models, '","') .. '"]')
  end
  return '{"sub":"' .. claims.sub .. '","tenant":"' .. claims.tenant
    .. '","permissions":{' .. table.concat(verbs, ",") .. "}}"
end

local function base64url(handle, text)
  return (handle:base64Escape(text):gsub("[+/=]", {["+"] = "-", ["/"] = "_", ["="] = ""}))
end

local function refuse_unknown(handle, identity)
  local message = "there is neither a token nor a client certificate; send the metadata"
    .. " `authorization: Bearer {token}` with a token from"
    .. " servery.gateway.v1.AuthService/ExchangeApiKey"
  if identity then
    message = "the gateway gives " .. identity .. " no tenant or no permission; ask its operator to"
      .. " map it to some"
  end
  refuse(handle, "401", 16, message, "ERROR_REASON_IDENTITY_UNKNOWN", {identity = identity or ""})
end

local function refuse_revoked(handle, identity)
  refuse(handle, "401", 16,
    identity .. " has been revoked; ask an administrator of the tenant to restore it",
    "ERROR_REASON_IDENTITY_REVOKED", {identity = identity})
end

local function places(tenant, caller)
  local limits = {}
  for _, owner in ipairs({"tenants/" .. tenant, caller}) do
    if IN_FLIGHT[owner] then table.insert(limits, owner .. "=" .. IN_FLIGHT[owner]) end
  end
  return table.concat(limits, ",")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local tenant, caller = headers:get("x-servery-tenant"), headers:get("x-servery-caller")
  if tenant == nil then
    if PUBLIC[headers:get(":path")] then return end
    local verified = handle:streamInfo():dynamicMetadata():get(TOKEN) or {}
    local known, identity = identify(handle, verified)
    if known == nil then return refuse_unknown(handle, identity) end
    tenant, caller = known.tenant, "tenants/" .. known.tenant .. "/identities/" .. identity
    headers:replace("x-servery-tenant", tenant)
    headers:replace("x-servery-caller", caller)
    if REVOKED[caller] then return refuse_revoked(handle, caller) end
    local claims = json({sub = caller, tenant = tenant, permissions = known.permissions})
    headers:replace("x-servery-claims", base64url(handle, claims))
  end
  local limits = places(tenant, caller)
  if limits ~= "" then headers:replace("x-servery-in-flight", limits) end
end
