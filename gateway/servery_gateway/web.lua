-- Notes how a gRPC-Web call ended: its trailers become part of the body, where the access log does not
-- look. Runs for those calls only.

function envoy_on_response(handle)
  local trailers = handle:trailers()
  if trailers == nil then return end
  local metadata = handle:streamInfo():dynamicMetadata()
  for _, key in ipairs({"grpc-status", "servery-usage"}) do
    local value = trailers:get(key)
    if value then metadata:set("servery.web", key, value) end
  end
end
